"""Intervals of shares and of paired differences, bounds of shares."""

import bisect
import functools
import math
from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 1000
Z = 1.959963984540054  # the normal distribution's 97.5 % point
Outcomes = Sequence[bool] | np.ndarray  # right or wrong, by answer


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share: (lower, upper) of `right` successes in n trials.

    >>> [round(x, 3) for x in wilson(9, 10)]
    [0.596, 0.982]
    """
    p, z2 = right / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
    these: Outcomes, those: Outcomes, clusters: Sequence[Hashable] | None = None
) -> tuple[float, tuple[float, float]]:
    """Mean of the paired differences with its normal 95 % interval.

    `clusters` are the problems of the answers: answers to one problem (under several templates)
    are not independent, problems are. None takes each answer for a problem of its own.

    The interval is `mean ± 1.96 s`, where s is the standard error with clusters (sandwich
    estimator, G / (G - 1) for G problems); without clusters that is the differences' sample
    standard deviation over sqrt(n). It has no width where every difference is the same, and is
    unbounded for a single problem.

    >>> paired_difference([1, 1, 1, 0], [0, 0, 1, 0], ["a", "a", "b", "b"])[0]
    0.5
    """
    sums, sizes = _sums(these, those, clusters)
    n, problems = int(sizes.sum()), len(sums)
    mean = float(sums.sum()) / n
    if problems == 1:
        return mean, (-1.0, 1.0)
    half = Z * _standard_error(sums, sizes)
    return mean, (mean - half, mean + half)


def paired_p(these: Outcomes, those: Outcomes, clusters: Sequence[Hashable] | None = None) -> float:
    """Two-sided p-value of "neither side is better": the larger one of two tests.

    The normal test belongs to `paired_difference`. It is too sure of itself where few problems
    differ, and certain where all differ alike; the exact sign test of the problems that lean to
    either side is not. An ordering counts only if both reject.

    >>> paired_p([1] * 5, [0] * 5)  # five coins that fall alike are no proof
    0.0625
    """
    sums, sizes = _sums(these, those, clusters)
    up, down = int((sums > 0).sum()), int((sums < 0).sum())
    if not up + down:
        return 1.0
    sign = min(1.0, 2 * at_most(min(up, down), up + down, 0.5))
    error = _standard_error(sums, sizes) if len(sums) > 1 else math.inf
    mean = abs(float(sums.sum())) / int(sizes.sum())
    return max(sign, math.erfc(mean / error / math.sqrt(2)) if error else 0.0)


def _sums(these, those, clusters) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the differences, and number of answers, of each problem."""
    d = np.asarray(these, float) - np.asarray(those, float)
    if clusters is None:
        return d, np.ones(len(d))
    places: dict[Hashable, int] = {}
    which = [places.setdefault(c, len(places)) for c in clusters]
    return np.bincount(which, d), np.bincount(which).astype(float)


def _standard_error(sums: np.ndarray, sizes: np.ndarray) -> float:
    problems, n = len(sums), sizes.sum()
    spread = sums - sums.sum() / n * sizes
    return math.sqrt(problems / (problems - 1) * float(spread @ spread)) / float(n)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of comparisons.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
    Statistics 6 (1979).

    Those below 0.05 hold jointly at 95 %.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    out, largest = [0.0] * len(p), 0.0
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - place) * p[i]))
        out[i] = largest
    return out


def orders(totals: np.ndarray) -> np.ndarray:
    """Who is ahead in each pair of rows.

    `totals` are scores of R rows under T templates, (..., R, T); returns 1, -1, and 0 for a tie,
    (..., R (R - 1) / 2, T).
    """
    i, j = np.triu_indices(totals.shape[-2], 1)
    return np.sign(totals[..., i, :] - totals[..., j, :])


def kendall_tau(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """Kendall's tau-b between orderings: 1 the same, -1 the reverse, 0 unrelated.

    Source: Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945).

    (..., P, T) and (..., P, U) of the same P pairs, from `orders`, become (..., T, U); NaN where
    one of the two orderings has nothing but ties.

    >>> scores = orders(np.array([[3, 1], [2, 2], [1, 0]]))
    >>> kendall_tau(scores, scores).round(2).tolist()
    [[1.0, 0.33], [0.33, 1.0]]
    """
    agree = np.einsum("...pt,...pu->...tu", these, those)
    sizes = [np.abs(x).sum(-2).astype(float) for x in (these, those)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return agree / np.sqrt(sizes[0][..., :, None] * sizes[1][..., None, :])


def resampling(n: int, rng: np.random.Generator) -> np.ndarray:
    """(R, n) float64: how often each of n problems is drawn in each resample of a bootstrap."""
    return rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)


def front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in both, the cheapest first.

    Of points that are equal in both, or in the loss alone, the first stays.

    >>> front([2, 3, 5], [0.9, 0.95, 0.2])
    [0, 2]
    """
    out, least = [], math.inf
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], losses[i], i)):
        if losses[i] < least - 1e-9:
            out.append(i)
            least = losses[i]
    return out


def at_most(successes: int, n: int, share: float) -> float:
    """The binomial CDF: the probability of at most `successes` in `n` independent trials.

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

    The share in (0, 1] at which at most so many successes have probability 1 - confidence.

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

    The least n with (1 - budget)^n <= 1 - confidence.

    >>> trials_needed(0.01, 0.95)
    299
    """
    n = math.ceil(math.log1p(-confidence) / math.log1p(-budget))
    # The quotient may fall on either side of a whole number by rounding.
    near = range(max(1, n - 1), n + 2)
    return next(n for n in near if upper_bound(0, n, confidence) <= budget)


@functools.lru_cache(maxsize=8)
def most_successes(n: int, budget: float, confidence: float) -> int:
    """The most successes in n trials that still bound the share by a budget, -1 if none do.

    >>> most_successes(100, 0.05, 0.95)
    1
    """

    def beyond(successes: int) -> bool:
        return upper_bound(successes, n, confidence) > budget

    return bisect.bisect_left(range(n), True, key=beyond) - 1
