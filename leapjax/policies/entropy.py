"""Fixed schedule: the least uncertain distributions first.

Source: Dream (arXiv 2508.15487), `entropy`.
"""

from __future__ import annotations

from leapjax.policies.base import Policy, best_of, commits
from leapjax.policies.parameters import SCHEDULED
from leapjax.types import SCHEDULE


def commit(proposal, masked, info):
    """Choose as many positions as the schedule asks for.

    Args:
      proposal: `.entropy` (B, W) float32 in nats.
      masked: (B, W) bool, the active block's open positions.
      info: `.quota` (B,) int32, how many to commit.

    Returns:
      A Decision of kind schedule.
    """
    return commits(best_of(-proposal.entropy, masked, info.quota), SCHEDULE)


POLICY = Policy(
    name="entropy",
    source="Dream (arXiv 2508.15487), `entropy`",
    commit=commit,
    parameters=SCHEDULED,
    needs=frozenset({"entropy"}),
)
