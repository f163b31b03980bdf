"""Fixed schedule: the most probable tokens first.

Source: arXiv 2502.09992 (LLaDA), low-confidence remasking.
"""

from __future__ import annotations

import jax.numpy as jnp

from leapjax.policies.base import Policy, best_of
from leapjax.types import SCHEDULE, Decision


def commit(proposal, masked, info):
    """Choose as many positions as the schedule asks for.

    Args:
      proposal: `.confidence` (B, W) float32 in [0, 1].
      masked: (B, W) bool, the active block's open positions.
      info: `.quota` (B,) int32, how many to commit.

    Returns:
      A Decision of kind schedule.
    """
    chosen = best_of(proposal.confidence, masked, info.quota)
    return Decision(chosen, jnp.full(chosen.shape, SCHEDULE, jnp.int8))


POLICY = Policy(
    name="low_confidence",
    source="arXiv 2502.09992 (LLaDA), low-confidence remasking",
    defaults={"steps": None, "schedule": "even"},
    commit=commit,
    scheduled=True,
)
