"""Does a calibration keep its promise? Many of them on random parts of one pool.

The pool is the population: its own share of disagreements is known exactly, and each
calibration sees only a random part, drawn without replacement. The share of calibrations that
choose a setting over the budget is then at most 1 - confidence: draws without replacement
spread less than the independent trials that the bound assumes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from leapjax.calibration import sequence


@dataclasses.dataclass(frozen=True)
class Promise:
    """Outcome of many calibrations.

    Attributes:
      repeats: calibrations.
      n: prompts of each.
      pool: prompts of the pool.
      failures: calibrations whose setting disagrees on more than the budget of the pool.
      rest_failures: the same on the prompts that the calibration did not see. A lucky part
        leaves an unlucky rest, so this exceeds `failures` where the pool is hardly larger
        than the parts.
      allowed: failures that a procedure with exactly the promised rate exceeds in 1 of 100 runs.
      none: calibrations in which no setting passed.
      picked: how often each setting was chosen.
      rates: each setting's share of disagreements in the pool.
      steps: each setting's mean steps over the pool.
      chosen_steps: mean steps of the chosen settings over the pool; None if none was ever.
    """

    repeats: int
    n: int
    pool: int
    failures: int
    rest_failures: int
    allowed: int
    none: int
    picked: tuple[int, ...]
    rates: tuple[float, ...]
    steps: tuple[float, ...]
    chosen_steps: float | None

    @property
    def holds(self) -> bool:
        """Whether the failures are within the promise and its sampling error."""
        return self.failures <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self) | {"holds": self.holds}


def resample(
    disagree: np.ndarray,
    steps: np.ndarray,
    *,
    n: int,
    repeats: int,
    budget: float,
    confidence: float,
    seed: int = 0,
) -> Promise:
    """Calibrate on random parts of a pool that has been decoded under every setting.

    Args:
      disagree: (S, P) bool, whether setting s disagrees with greedy on prompt p.
      steps: (S, P) steps.
      n: prompts of each calibration, at most P.
      repeats: calibrations.
      budget: share of answers that may differ.
      confidence: of each.
      seed: of the draws.
    """
    from scipy.stats import binom

    rng = np.random.default_rng(seed)
    settings, pool = disagree.shape
    rates, mean_steps = disagree.mean(axis=1), steps.mean(axis=1)
    picked, failures, rest_failures = np.zeros(settings, int), 0, 0
    for _ in range(repeats):
        seen = np.zeros(pool, bool)
        seen[rng.choice(pool, n, replace=False)] = True
        part = disagree[:, seen]
        good = sequence.passed(part.sum(axis=1).tolist(), n, budget, confidence)
        pick = sequence.chosen(steps[:good, seen].mean(axis=1).tolist())
        if pick is None:
            continue
        picked[pick] += 1
        failures += rates[pick] > budget
        if n < pool:
            rest_failures += disagree[pick, ~seen].mean() > budget
    calibrated = int(picked.sum())
    return Promise(
        repeats=repeats,
        n=n,
        pool=pool,
        failures=int(failures),
        rest_failures=int(rest_failures),
        allowed=int(binom.ppf(0.99, repeats, 1 - confidence)),
        none=repeats - calibrated,
        picked=tuple(picked.tolist()),
        rates=tuple(rates.tolist()),
        steps=tuple(mean_steps.tolist()),
        chosen_steps=float(picked @ mean_steps / calibrated) if calibrated else None,
    )
