"""The Clopper-Pearson bound: how often answers may really differ, given how often they did.

Source: Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case
of the binomial, Biometrika 26 (1934).
"""

from __future__ import annotations

import math


def upper_bound(disagreements: int, n: int, confidence: float) -> float:
    """One-sided upper bound of a share, exact for independent trials.

    Args:
      disagreements: how many of the trials disagreed, 0 to n.
      n: trials, at least 1.
      confidence: probability with which the bound holds, such as 0.95.

    Returns:
      The share at which so few disagreements have probability 1 - confidence, in (0, 1].
    """
    # jax itself requires scipy; jax.scipy has no inverse of the incomplete beta function.
    from scipy.special import betaincinv

    if disagreements == n:
        return 1.0
    return float(betaincinv(disagreements + 1, n - disagreements, confidence))


def prompts_needed(budget: float, confidence: float) -> int:
    """The fewest prompts with which a setting that never disagrees passes.

    Args:
      budget: share of answers that may differ, in (0, 1).
      confidence: as in `upper_bound`.

    Returns:
      The least n with (1 - budget)^n <= 1 - confidence.
    """
    n = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-budget)))
    # The quotient may fall on either side of a whole number by rounding.
    while upper_bound(0, n, confidence) > budget:
        n += 1
    while n > 1 and upper_bound(0, n - 1, confidence) <= budget:
        n -= 1
    return n


def most_disagreements(n: int, budget: float, confidence: float) -> int:
    """The most disagreements among n prompts with which a setting still passes.

    Args:
      n: prompts.
      budget: as in `prompts_needed`.
      confidence: as in `upper_bound`.

    Returns:
      The largest such number, -1 if even none is too many.
    """
    low, high = -1, n  # passes at low, fails at high
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(middle, n, confidence) <= budget:
            low = middle
        else:
            high = middle
    return low
