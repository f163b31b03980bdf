"""The rows of an evaluation: which policies, under which names, with which options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from leapjax.config import CACHES, DecodeConfig, check_keys

# name -> policy, and for fixed schedules the tokens a step
POLICIES = {
    "greedy": ("low_confidence", 1),
    "schedule-2": ("low_confidence", 2),
    "schedule-4": ("low_confidence", 4),
    "schedule-8": ("low_confidence", 8),
    "threshold": ("confidence_threshold", 0),
    "localleap": ("localleap", 0),
    "factor": ("factor", 0),
    "entropy-bound": ("entropy_bound", 0),
    "hierarchy": ("hierarchy", 0),
    "certainty-prior": ("certainty_prior", 1),
    "position-calibration": ("position_calibration", 1),
    "klass": ("klass", 0),
    "slowfast": ("slowfast", 0),
    "credit": ("credit", 0),
    "wino": ("wino", 0),
}
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
}
BASELINE = ("greedy", "none")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
      policy: a name in `POLICIES`.
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
      policies: names in `POLICIES`.
      caches: none, prefix, dual.
      base: canvas and block.

    Raises:
      UserError: an unknown name, or a canvas that a schedule can't divide.
    """
    policies, caches = list(policies), list(caches)
    check_keys(policies, "--policies", POLICIES, "policy")
    check_keys(caches, "--caches", CACHES, "cache")
    keys = [BASELINE, *((p, c) for c in caches for p in policies)]
    return [Row(p, _config(p, c, base)) for p, c in dict.fromkeys(keys)]


def _config(name: str, cache: str, base: DecodeConfig) -> DecodeConfig:
    policy, tokens = POLICIES[name]
    # One pass a block is the fewest that a schedule can take.
    steps = max(base.gen_length // tokens // base.blocks, 1) * base.blocks if tokens else None
    return base.replace(policy=policy, steps=steps, cache=cache)
