"""Which attention rules, KV caches and policies go together: the one table of pairs.

The three registries know nothing of each other. A pair that makes no sense is refused here,
in one line.
"""

from __future__ import annotations

from collections.abc import Iterable

from leapjax.caches import CACHES
from leapjax.models.attention import RULES, Rule
from leapjax.policies import POLICIES

# Attention rule -> the caches that serve it.
CACHES_FOR = {
    # Every position depends on later ones, so that what is kept of a finished block goes stale.
    "bidirectional": ("none", "prefix", "dual"),
    "windowed": ("none", "prefix", "dual"),
    # A finished block never changes: an approximation would cost exactness for nothing.
    "block_causal": ("none",),
    "causal": ("none",),
}


def refusal(cache: str, policy: str, attention: Iterable[Rule] = ()) -> str | None:
    """Why these do not go together, in one line; None if they do.

    Args:
      cache: name in `CACHES`.
      policy: name in `POLICIES`.
      attention: the rules of the model's layers, where the model is known.

    >>> refusal("dual", "localleap")
    >>> refusal("dual", "wino").split("; ")[1]
    'choose cache none or another policy'
    """
    for rule in attention:
        name = next(name for name, kind in RULES.items() if isinstance(rule, kind))
        if cache not in CACHES_FOR[name]:
            choices = " or ".join(CACHES_FOR[name])
            return f"cache is {cache}, but the model's attention is {name}; choose cache {choices}"
    # A second look at the window attends to every column, which only a whole pass computes.
    if CACHES[cache].stores and "recheck" in POLICIES[policy].needs:
        return (
            f"cache is {cache}, but policy {policy} reads the whole sequence in every pass; "
            f"choose cache none or another policy"
        )
    return None
