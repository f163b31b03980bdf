"""Intervals of shares and of paired differences, bounds of shares."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share.

    Args:
      right: successes.
      n: trials, at least 1.

    Returns:
      Lower and upper end, in [0, 1].

    >>> [round(x, 3) for x in wilson(9, 10)]
    [0.596, 0.982]
    """
    p, z2 = right / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
    these: Sequence[bool], those: Sequence[bool]
) -> tuple[float, tuple[float, float]]:
    """Mean of the per-problem differences with its normal 95 % interval.

    Args:
      these: right or wrong, by problem.
      those: the baseline on the same problems, in the same order.

    Returns:
      The mean of `these - those` and the interval `mean ± 1.96 s / sqrt(n)`, with s the
      differences' sample standard deviation (n − 1). It has no width where every
      difference is the same, and is unbounded for a single problem.
    """
    d = [int(a) - int(b) for a, b in zip(these, those, strict=True)]
    n = len(d)
    mean = sum(d) / n
    if n == 1:
        return mean, (-1.0, 1.0)
    half = Z * math.sqrt(sum((x - mean) ** 2 for x in d) / (n - 1) / n)
    return mean, (mean - half, mean + half)


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share q of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def at_most(successes: int, n: int, share: float) -> float:
    """The binomial CDF: the probability of at most `successes` in `n` independent trials.

    Args:
      successes: 0 to n.
      n: trials, at least 1.
      share: probability that a trial succeeds, in (0, 1).

    >>> round(at_most(1, 3, 0.5), 6)
    0.5
    """
    k, logs = np.arange(successes + 1), _log_factorials(n)
    ways = logs[n] - logs[k] - logs[n - k]
    return float(np.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share)).sum())


@functools.lru_cache(maxsize=8)
def _log_factorials(n: int) -> np.ndarray:
    return np.array([math.lgamma(i + 1) for i in range(n + 1)])


def upper_bound(successes: int, n: int, confidence: float) -> float:
    """One-sided upper Clopper-Pearson bound of a share, exact for independent trials.

    Source: Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case
    of the binomial, Biometrika 26 (1934).

    Args:
      successes: 0 to n.
      n: trials, at least 1.
      confidence: probability with which the bound holds, such as 0.95.

    Returns:
      The share, in (0, 1], at which at most so many successes have probability 1 - confidence.

    >>> round(upper_bound(0, 100, 0.95), 4)
    0.0295
    """
    if successes == 0:
        return -math.expm1(math.log1p(-confidence) / n)
    low, high = successes / n, 1.0  # `at_most` falls with the share
    while low < (middle := (low + high) / 2) < high:
        if at_most(successes, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def trials_needed(budget: float, confidence: float) -> int:
    """The fewest trials with which no success at all bounds the share by a budget.

    Args:
      budget: a share, in (0, 1).
      confidence: as in `upper_bound`.

    Returns:
      The least n with (1 - budget)^n <= 1 - confidence.

    >>> trials_needed(0.01, 0.95)
    299
    """
    n = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-budget)))
    # The quotient may fall on either side of a whole number by rounding.
    while upper_bound(0, n, confidence) > budget:
        n += 1
    while n > 1 and upper_bound(0, n - 1, confidence) <= budget:
        n -= 1
    return n


@functools.lru_cache(maxsize=8)
def most_successes(n: int, budget: float, confidence: float) -> int:
    """The most successes in n trials that still bound the share by a budget, -1 if none do.

    >>> most_successes(100, 0.05, 0.95)
    1
    """
    low, high = -1, n  # within the budget at low, beyond it at high
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(middle, n, confidence) <= budget:
            low = middle
        else:
            high = middle
    return low
