"""Compatibility of attention rules, KV caches and policies.

The three registries are independent of each other; only this module relates them.
"""

from collections.abc import Iterable

from leapjax.caches import CACHES
from leapjax.models.attention import RULES, Absent, Rule
from leapjax.policies import POLICIES
from leapjax.types import ATTENTION, WHOLE_ROW

# Attention rule -> the caches that serve it.
CACHES_FOR = {
    # Every position depends on later ones, so cached keys and values go stale.
    "bidirectional": ("none", "prefix", "dual"),
    "windowed": ("none", "prefix", "dual"),
    # A finished block never changes, so its keys and values are exact.
    "block_causal": ("none", "block"),
    "causal": ("none",),
    "absent": ("none",),  # without attention there are no keys and values
}


def default_cache(policy: str, attention: Iterable[Rule]) -> str:
    """The cache of a decode that names none: an exact one, if model and policy can use it.

    `attention`: the rules of the model's layers.

    >>> from leapjax.models.attention import Bidirectional
    >>> default_cache("localleap", [Bidirectional()])
    'none'
    """
    rules, exact = list(attention), (n for n, c in CACHES.items() if c.exact and c.stores)
    return next((name for name in exact if not refusal(name, policy, rules)), "none")


def refusal(cache: str, policy: str, attention: Iterable[Rule] = ()) -> str | None:
    """Why a combination is refused, in one line; None if it is allowed.

    `attention`: the rules of the model's layers, if the model is known.

    >>> refusal("dual", "localleap")
    >>> refusal("dual", "wino").split("; ")[1]
    'choose cache none or another policy'
    """
    for rule in attention:
        name = next(name for name, kind in RULES.items() if isinstance(rule, kind))
        if cache not in CACHES_FOR[name]:
            choices = " or ".join(CACHES_FOR[name])
            return f"cache is {cache}, but the model's attention is {name}; choose cache {choices}"
        if ATTENTION & POLICIES[policy].needs and rule == Absent():
            return f"policy {policy} reads attention, which the model has not; choose another one"
    # Only a full pass computes every column.
    if CACHES[cache].stores and WHOLE_ROW & POLICIES[policy].needs:
        return (
            f"cache is {cache}, but policy {policy} reads the whole sequence in every pass; "
            f"choose cache none or another policy"
        )
    return None
