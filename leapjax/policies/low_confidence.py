"""Fixed schedule: the most probable tokens first.

Source: arXiv 2502.09992 (LLaDA), low-confidence remasking.
"""

from __future__ import annotations

from leapjax.policies.base import Policy, best_of, commits
from leapjax.policies.parameters import SCHEDULED
from leapjax.types import SCHEDULE


def commit(proposal, masked, info):
    """Choose as many positions as the schedule asks for.

    Args:
      proposal: `.confidence` (B, W) float32 in [0, 1].
      masked: (B, W) bool, the active block's open positions.
      info: `.quota` (B,) int32, how many to commit.

    Returns:
      A Decision of kind schedule.
    """
    return commits(best_of(proposal.confidence, masked, info.quota), SCHEDULE)


POLICY = Policy(
    name="low_confidence",
    source="arXiv 2502.09992 (LLaDA), low-confidence remasking",
    commit=commit,
    parameters=SCHEDULED,
    rows=(
        ("greedy", 1, "greedy, one token a step"),
        ("schedule-2", 2, "fixed schedule, 1/2 of the steps"),
        ("schedule-4", 4, "fixed schedule, 1/4 of the steps"),
        ("schedule-8", 8, "fixed schedule, 1/8 of the steps"),
    ),
)
