"""Differences at equal mean steps, and the Pareto front."""

import numpy as np
import pytest

from leapjax.studies.ablation_report import front
from leapjax.studies.equal_steps import Outcome, match
from leapjax.studies.statistics import Z, paired_difference


def outcome(right, steps):
    return Outcome(np.array(right, float), np.array(steps, float))


def test_a_mixture_has_the_settings_steps():
    setting = outcome([1, 1, 0, 1], [4, 4, 4, 4])
    controls = [outcome([1, 1, 1, 1], [6] * 4), outcome([1, 0, 0, 0], [3] * 4)]
    controls += [outcome([0] * 4, [2] * 4), outcome([1] * 4, [9] * 4)]
    found = match(setting, controls)
    assert (found["slower"], found["faster"]) == (0, 1)  # the neighbours, not any two around
    assert found["weight"] == pytest.approx(1 / 3)
    assert found["weight"] * 6 + (1 - found["weight"]) * 3 == pytest.approx(4)
    assert found["control_accuracy"] == pytest.approx((1 / 3) * 1 + (2 / 3) * 0.25)
    assert found["difference"] == pytest.approx(0.75 - 0.5)


def test_with_equal_steps_it_is_the_paired_difference():
    setting = outcome([1, 1, 0, 1, 0], [4, 5, 4, 5, 4])
    control = outcome([1, 0, 0, 0, 1], [5, 4, 5, 4, 4])
    found = match(setting, [control])
    mean, interval = paired_difference(setting.right.astype(bool), control.right.astype(bool))
    assert found["difference"] == pytest.approx(mean)
    assert found["interval"] == pytest.approx(interval)


def test_outside_the_control_there_is_no_comparison():
    controls = [outcome([1, 0], [5, 5]), outcome([1, 0], [3, 3])]
    assert match(outcome([1, 1], [6, 6]), controls) is None
    assert match(outcome([1, 1], [2, 2]), controls) is None


def test_the_interval_covers_the_error_of_the_weight():
    """Over many made-up samples, it is as wide as the differences really spread."""
    rng = np.random.default_rng(0)
    differences, halves = [], []
    for _ in range(2000):
        hard = rng.random(60)  # hard problems take more steps, and are missed more often

        def draw(shift, right, hard=hard):
            steps = shift + 6 * hard + rng.normal(0, 1, 60)
            return outcome(rng.random(60) < right - 0.4 * hard, steps)

        found = match(draw(3, 0.8), [draw(6, 0.95), draw(1, 0.6)])
        differences.append(found["difference"])
        halves.append((found["interval"][1] - found["interval"][0]) / 2)
    assert np.mean(halves) / Z == pytest.approx(np.std(differences), rel=0.08)


def test_front():
    def points(*pairs):
        return [{"steps": s, "accuracy": a} for s, a in pairs]

    assert front(points((5, 0.9), (3, 0.8), (4, 0.7), (2, 0.5), (3, 0.6))) == [3, 1, 0]
    assert front(points((3, 0.8), (3, 0.8), (4, 0.8))) == [0]
