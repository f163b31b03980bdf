"""Fixed schedule: positions in random order.

Source: arXiv 2502.09992 (LLaDA), random remasking.
"""

from __future__ import annotations

import jax.numpy as jnp

from leapjax.policies.base import Policy, best_of
from leapjax.types import SCHEDULE, Decision


def commit(proposal, masked, info):
    """Choose as many positions as the schedule asks for.

    Args:
      proposal: `.uniform` (B, W) float32 in [0, 1).
      masked: (B, W) bool, the active block's open positions.
      info: `.quota` (B,) int32, how many to commit.

    Returns:
      A Decision of kind schedule.
    """
    chosen = best_of(proposal.uniform, masked, info.quota)
    return Decision(chosen, jnp.full(chosen.shape, SCHEDULE, jnp.int8))


POLICY = Policy(
    name="random",
    source="arXiv 2502.09992 (LLaDA), random remasking",
    defaults={"steps": None, "schedule": "even"},
    commit=commit,
    needs=frozenset({"uniform"}),
    scheduled=True,
)
