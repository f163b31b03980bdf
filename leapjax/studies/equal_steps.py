"""Compare a setting with a curve of others at equal mean steps.

Two neighbouring settings of the control, one slower and one faster than the setting, are mixed:
the slower with probability w, the faster otherwise, w such that the mixture's mean steps are the
setting's. The mixture is a decoder that one could run, and its accuracy is what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from leapjax.studies.statistics import Z


class Outcome(NamedTuple):
    """A setting's results: `right` (n,) float, 1 for a right answer, and `steps` (n,) float."""

    right: np.ndarray
    steps: np.ndarray


def match(setting: Outcome, controls: Sequence[Outcome]) -> dict[str, Any] | None:
    """Compare at equal mean steps, on the same problems.

    Args:
      setting: n problems.
      controls: the control's settings, on the same problems in the same order.

    Returns:
      None where no control is as slow, or none as fast. Otherwise `steps` (mean, of both sides),
      `accuracy`, `control_accuracy` (the mixture's), their `difference` with its 95 % `interval`,
      `slower` (index of the control's setting with more steps), `faster` (`slower` itself where it
      has exactly the steps), `weight` (share of the slower one). The interval is normal, paired by
      problem, and by the delta method includes that the weight was estimated from the same
      problems. It is unbounded for a single problem.
    """
    n, target = len(setting.steps), float(setting.steps.mean())
    means = [float(c.steps.mean()) for c in controls]
    above = [i for i, m in enumerate(means) if m >= target]
    below = [i for i, m in enumerate(means) if m <= target]
    if not above or not below:
        return None
    slower = min(above, key=lambda i: means[i])
    faster = max(below, key=lambda i: means[i])
    a, b = controls[slower], controls[faster]
    gap = means[slower] - means[faster]
    weight = (target - means[faster]) / gap if gap > 0 else 1.0
    right = weight * a.right + (1 - weight) * b.right
    steps = weight * a.steps + (1 - weight) * b.steps
    # An estimation error in the mean steps moves the weight, and with it the accuracy.
    slope = (a.right.mean() - b.right.mean()) / gap if gap > 0 else 0.0
    parts = setting.right - right - slope * (setting.steps - steps)
    difference = float(setting.right.mean() - right.mean())
    half = Z * float(parts.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return {
        "steps": target,
        "accuracy": float(setting.right.mean()),
        "control_accuracy": float(right.mean()),
        "difference": difference,
        "interval": [max(difference - half, -1.0), min(difference + half, 1.0)],
        "slower": slower,
        "faster": faster,
        "weight": weight,
    }
