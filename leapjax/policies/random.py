"""Fixed schedule: positions in random order.

Source: arXiv 2502.09992 (LLaDA), random remasking.
"""

from __future__ import annotations

from leapjax.policies.base import Policy, best_of, commits
from leapjax.policies.parameters import SCHEDULED
from leapjax.types import SCHEDULE


def commit(proposal, masked, info):
    """Choose as many positions as the schedule asks for.

    Args:
      proposal: `.uniform` (B, W) float32 in [0, 1).
      masked: (B, W) bool, the active block's open positions.
      info: `.quota` (B,) int32, how many to commit.

    Returns:
      A Decision of kind schedule.
    """
    return commits(best_of(proposal.uniform, masked, info.quota), SCHEDULE)


POLICY = Policy(
    name="random",
    source="arXiv 2502.09992 (LLaDA), random remasking",
    commit=commit,
    parameters=SCHEDULED,
    label="random order",
    needs=frozenset({"uniform"}),
)
