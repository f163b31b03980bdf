import math
from fractions import Fraction

import pytest
import scipy.stats

from leapjax.studies.statistics import most_successes, trials_needed, upper_bound


def tail(k, n, p):
    """P(at most k of n trials succeed), by exact arithmetic."""
    p = Fraction(p)
    return float(sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)))


@pytest.mark.parametrize("n", [1, 7, 59, 300])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_bound_is_where_so_few_are_unlikely(n, confidence):
    for k in {0, 1, n // 3, n - 1}:
        if k < n:
            bound = upper_bound(k, n, confidence)
            assert tail(k, n, bound) == pytest.approx(1 - confidence, rel=1e-6)
            interval = scipy.stats.binomtest(k, n, alternative="less").proportion_ci(confidence)
            assert bound == pytest.approx(interval.high, rel=1e-9)
    assert upper_bound(n, n, confidence) == 1.0


def test_published_values():
    """The rule of three, and the sizes that acceptance sampling tables give."""
    assert upper_bound(0, 100, 0.95) == pytest.approx(0.029513, abs=1e-6)
    assert [trials_needed(b, 0.95) for b in (0.1, 0.05, 0.02, 0.01)] == [29, 59, 149, 299]
    assert trials_needed(0.05, 0.99) == 90
    assert trials_needed(0.5, 0.5) == 1 and trials_needed(0.5, 0.75) == 2  # exact hits


@pytest.mark.parametrize("budget", [0.003, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_needed_and_most_fit_the_bound(budget, confidence):
    n = trials_needed(budget, confidence)
    assert (1 - budget) ** n <= 1 - confidence + 1e-12 < (1 - budget) ** (n - 1)
    assert most_successes(n, budget, confidence) == 0
    assert most_successes(n - 1, budget, confidence) == -1
    for size in (n, 2 * n, 5 * n + 1):
        most = most_successes(size, budget, confidence)
        assert upper_bound(most, size, confidence) <= budget
        assert upper_bound(most + 1, size, confidence) > budget
