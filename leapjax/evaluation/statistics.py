"""Intervals for shares and for paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share.

    Args:
      right: successes.
      n: trials, at least 1.

    Returns:
      Lower and upper end, in [0, 1].
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
