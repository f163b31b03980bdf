"""The rows of an evaluation: which policies, under which names, with which options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from leapjax.caches import CACHES
from leapjax.config import DecodeConfig, check_keys
from leapjax.policies import ROWS
from leapjax.policies.names import row_names

# The rows of an evaluation that names none.
USUAL = ("greedy", "schedule-2", "schedule-4", "schedule-8", "threshold", "localleap")
BASELINE = ("greedy", "none")


class Row(NamedTuple):
    """One row of the table.

    Attributes:
      policy: a name in `leapjax.policies.ROWS`.
      config: the decode options it stands for.
    """

    policy: str
    config: DecodeConfig

    @property
    def key(self) -> tuple[str, str]:
        """Policy and KV cache."""
        return self.policy, self.config.cache

    @property
    def label(self) -> str:
        """For people."""
        return ROWS[self.policy].label


def rows(policies: Iterable[str], caches: Iterable[str], base: DecodeConfig) -> list[Row]:
    """The rows to run, the baseline (greedy without a cache) first, even if it is not named.

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
