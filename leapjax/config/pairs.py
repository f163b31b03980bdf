"""Which attention rules, KV caches and policies go together: the one table of pairs.

The three registries know nothing of each other. A pair that makes no sense is refused here,
in one line.
"""

from __future__ import annotations

from leapjax.caches import CACHES
from leapjax.policies import POLICIES

# Attention rule -> the caches that serve it.
CACHES_FOR = {
    # Every position depends on every other, so what is kept of a block goes stale.
    "bidirectional": ("none", "prefix", "dual"),
    # A position sees its block and the earlier ones, so finished blocks never change.
    "block-causal": ("none",),
}


def refusal(
    cache: str, *, policy: str | None = None, attention: str = "bidirectional"
) -> str | None:
    """Why these do not go together, in one line; None if they do.

    Args:
      cache: name in `CACHES`.
      policy: name in `POLICIES`; None asks about the attention rule alone.
      attention: name in `CACHES_FOR`, the model's attention rule.

    >>> refusal("dual", policy="localleap")
    >>> refusal("dual", attention="block-causal")
    'cache is dual, but the model has block-causal attention; choose one of none'
    """
    if cache not in CACHES_FOR[attention]:
        choices = ", ".join(CACHES_FOR[attention])
        return f"cache is {cache}, but the model has {attention} attention; choose one of {choices}"
    # A second look at the window attends to every column, which only a whole pass computes.
    if policy is not None and CACHES[cache].stores and "recheck" in POLICIES[policy].needs:
        whole = next(name for name in CACHES_FOR[attention] if not CACHES[name].stores)
        return (
            f"cache is {cache}, but policy {policy} reads the whole sequence in every pass; "
            f"choose cache {whole} or another policy"
        )
    return None
