"""The rows of an evaluation: which policies, under which names, with which options."""

from collections.abc import Iterable
from typing import NamedTuple

from leapjax.caches import CACHES
from leapjax.config import DecodeConfig, check_keys
from leapjax.policies import POLICIES, ROWS
from leapjax.policies.names import row_names

# The rows of an evaluation that names none.
USUAL = ("greedy", "schedule-2", "schedule-4", "schedule-8", "threshold", "localleap")
BASELINE = ("greedy", "none")


class Row(NamedTuple):
    """One row of the table."""

    policy: str  # a name in `leapjax.policies.ROWS`
    config: DecodeConfig
    equal: str = ""  # `steps` or `time` where the options were found for equal cost

    @property
    def label(self) -> str:
        """For people."""
        return f"{setting(self.config)}, equal {self.equal}" if self.equal else ROWS[self.policy][2]


def setting(config: DecodeConfig) -> str:
    """A policy and the values of the parameters that trade accuracy for steps.

    >>> setting(DecodeConfig(policy="confidence_threshold", threshold=0.8))
    'confidence threshold (threshold 0.8)'
    """
    names = [p.name for p in POLICIES[config.policy].tuned]
    if names == ["steps"] and config.value("steps") is None:
        names = ["steps_per_block"]
    told = ", ".join(f"{n.replace('_', ' ')} {config.value(n):.4g}" for n in names)
    return config.policy.replace("_", " ") + (f" ({told})" if told else "")


def rows(policies: Iterable[str], caches: Iterable[str], base: DecodeConfig) -> list[Row]:
    """The rows to run, the baseline (greedy without a cache) first, even if it is not named."""
    policies, caches = row_names(policies, "--policies"), list(caches)
    check_keys(caches, "--caches", CACHES, "cache")
    keys = [BASELINE, *((p, c) for c in caches for p in policies)]
    return [Row(p, base.replace(policy=p, cache=c)) for p, c in dict.fromkeys(keys)]
