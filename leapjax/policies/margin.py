"""Fixed schedule: the widest lead over the second-best token first.

Source: arXiv 2502.06768, and Dream's `topk_margin`.
"""

from __future__ import annotations

import jax.numpy as jnp

from leapjax.policies.base import Policy, best_of
from leapjax.types import SCHEDULE, Decision


def commit(proposal, masked, info):
    """Choose as many positions as the schedule asks for.

    Args:
      proposal: `.margin` (B, W) float32 in [0, 1].
      masked: (B, W) bool, the active block's open positions.
      info: `.quota` (B,) int32, how many to commit.

    Returns:
      A Decision of kind schedule.
    """
    chosen = best_of(proposal.margin, masked, info.quota)
    return Decision(chosen, jnp.full(chosen.shape, SCHEDULE, jnp.int8))


POLICY = Policy(
    name="margin",
    source="arXiv 2502.06768, and Dream's `topk_margin`",
    defaults={"steps": None, "schedule": "even"},
    commit=commit,
    needs=frozenset({"margin"}),
    scheduled=True,
)
