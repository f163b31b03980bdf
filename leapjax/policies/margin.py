"""Fixed schedule: the widest lead over the second-best token first.

Source: arXiv 2502.06768, and Dream's `topk_margin`.
"""

from __future__ import annotations

from leapjax.policies.base import Policy, best_of, commits
from leapjax.policies.parameters import SCHEDULED
from leapjax.types import SCHEDULE


def commit(proposal, masked, info):
    """Choose as many positions as the schedule asks for.

    Args:
      proposal: `.margin` (B, W) float32 in [0, 1].
      masked: (B, W) bool, the active block's open positions.
      info: `.quota` (B,) int32, how many to commit.

    Returns:
      A Decision of kind schedule.
    """
    return commits(best_of(proposal.margin, masked, info.quota), SCHEDULE)


POLICY = Policy(
    name="margin",
    source="arXiv 2502.06768, and Dream's `topk_margin`",
    commit=commit,
    parameters=SCHEDULED,
    needs=frozenset({"margin"}),
)
