import numpy as np
import pytest
import scipy.stats

from leapjax.studies import calibration


def by_p_values(disagreements, n, budget, level):
    """Fixed-sequence testing as published: reject in order while p <= level, then stop."""
    rejected = []
    for j, k in enumerate(disagreements):
        # p-value of "this setting's share is above the budget", at its likeliest
        if scipy.stats.binom.cdf(k, n, budget) > level:
            break
        rejected.append(j)
    return rejected


@pytest.mark.parametrize("seed", range(40))
def test_passed_is_the_published_procedure(seed):
    rng = np.random.default_rng(seed)
    n, budget = int(rng.integers(50, 900)), float(rng.choice([0.02, 0.05, 0.2]))
    found = rng.binomial(n, rng.uniform(0, 1.2 * budget, 6)).tolist()
    want = by_p_values(found, n, budget, 0.05)
    assert calibration.passed(found, n, budget, 0.95) == len(want)


def test_nothing_behind_the_first_failure_is_read():
    def found():
        yield from (0, 50)
        raise AssertionError("read on after a failure")

    assert calibration.passed(found(), 300, 0.05, 0.95) == 1


def test_chosen_is_the_fewest_steps_the_safer_of_equals():
    assert calibration.fewest_steps([9.0, 5.0, 7.0, 5.0]) == 1
    assert calibration.fewest_steps([]) is None


def pool(rates, size, seed=0):
    """Settings that disagree on just so many prompts of a pool, the faster the more."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(size)
    disagree = np.zeros((len(rates), size), bool)
    for row, rate in zip(disagree, rates, strict=True):
        row[order[: round(rate * size)]] = True
    steps = np.repeat(np.arange(len(rates), 0, -1.0)[:, None], size, axis=1)
    return disagree, steps


def check(rates, budget=0.02, **changes):
    disagree, steps = pool(rates, 4000)
    options = {"n": 1000, "repeats": 2000, "budget": budget, "confidence": 0.95} | changes
    return calibration.resample(disagree, steps, **options)


def test_promise_is_kept_where_it_is_hardest():
    """A setting a hair over the budget: nearly one in twenty may pass, not more."""
    outcome = check([0.0, 0.0205, 0.3])
    assert 0 < outcome["failures"] <= outcome["allowed"] and outcome["holds"]
    assert outcome["picked"][2] == 0 and outcome["none"] == 0
    assert outcome["picked"][0] + outcome["failures"] == outcome["repeats"]
    assert outcome["chosen_steps"] is not None and 2.9 < outcome["chosen_steps"] <= 3


def test_a_broken_procedure_is_seen(monkeypatch):
    """Comparing the share itself with the budget fails nearly half the time."""
    monkeypatch.setattr(calibration, "most_successes", lambda n, budget, _: int(budget * n))
    outcome = check([0.0, 0.0205, 0.3])
    assert not outcome["holds"] and outcome["failures"] > 600


def test_promise_counts():
    outcome = check([0.3, 0.0], repeats=10)
    assert outcome["none"] == 10 and outcome["picked"] == [0, 0] and outcome["chosen_steps"] is None
    outcome = check([0.001, 0.002], repeats=10)
    assert outcome["picked"] == [0, 10] and outcome["failures"] == 0 == outcome["rest_failures"]
    assert outcome["rates"] == [0.001, 0.002] and outcome["chosen_steps"] == 1.0
    again = check([0.0, 0.0205], repeats=50, seed=3)
    assert again == check([0.0, 0.0205], repeats=50, seed=3)
