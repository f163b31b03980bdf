"""The rows of an evaluation: which policies, under which names, with which options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from leapjax.caches import CACHES
from leapjax.config import DecodeConfig, check_keys
from leapjax.policies.names import row_names

# The rows of an evaluation that names none.
USUAL = ("greedy", "schedule-2", "schedule-4", "schedule-8", "threshold", "localleap")
LABELS = {
    "greedy": "greedy, one token a step",
    "schedule-2": "fixed schedule, 1/2 of the steps",
    "schedule-4": "fixed schedule, 1/4 of the steps",
    "schedule-8": "fixed schedule, 1/8 of the steps",
    "threshold": "confidence threshold 0.9",
    "localleap": "LocalLeap (0.9, 0.75, radius 4)",
    "factor": "factor 1",
    "entropy-bound": "entropy bound 0.1",
    "hierarchy": "hierarchy (0.9, 0.4)",
    "certainty-prior": "certainty prior (sigma 10), one token a step",
    "position-calibration": "position calibration (0.25, 10), one token a step",
    "klass": "KLASS (0.9, 0.01, 2 passes)",
    "slowfast": "SlowFast (0.9, 0.3, 6 passes)",
    "credit": "credit (0.9; 0.7, 0.2, 0.8)",
    "wino": "WINO (0.6, 0.9)",
    "margin": "margin, one token a step",
    "entropy": "entropy, one token a step",
    "random": "random order, one token a step",
    "placebo": "placebo (0.9, 0.75, radius 4)",
}
BASELINE = ("greedy", "none")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
      policy: a name in `leapjax.policies.names.ROWS`.
      config: the decode options it stands for.
    """

    policy: str
    config: DecodeConfig

    @property
    def cache(self) -> str:
        """The KV cache."""
        return self.config.cache

    @property
    def key(self) -> tuple[str, str]:
        """Policy and cache."""
        return self.policy, self.cache

    @property
    def label(self) -> str:
        """For people."""
        return LABELS[self.policy]


def rows(policies: Iterable[str], caches: Iterable[str], base: DecodeConfig) -> list[Row]:
    """The rows to run, the baseline (greedy without a cache) first, whether named or not.

    Args:
      policies: names of policies.
      caches: names of KV caches.
      base: canvas and block.

    Raises:
      UserError: an unknown name, or a canvas that a schedule can't divide.
    """
    policies, caches = row_names(policies, "--policies"), list(caches)
    check_keys(caches, "--caches", CACHES, "cache")
    keys = [BASELINE, *((p, c) for c in caches for p in policies)]
    return [Row(p, base.replace(policy=p, cache=c)) for p, c in dict.fromkeys(keys)]
