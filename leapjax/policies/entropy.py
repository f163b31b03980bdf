"""Fixed schedule: the least uncertain distributions first.

Source: Dream (arXiv 2508.15487), `entropy`.
"""

from __future__ import annotations

import jax.numpy as jnp

from leapjax.policies.base import Policy, best_of
from leapjax.types import SCHEDULE, Decision


def commit(proposal, masked, info):
    """Choose as many positions as the schedule asks for.

    Args:
      proposal: `.entropy` (B, W) float32 in nats.
      masked: (B, W) bool, the active block's open positions.
      info: `.quota` (B,) int32, how many to commit.

    Returns:
      A Decision of kind schedule.
    """
    chosen = best_of(-proposal.entropy, masked, info.quota)
    return Decision(chosen, jnp.full(chosen.shape, SCHEDULE, jnp.int8))


POLICY = Policy(
    name="entropy",
    source="Dream (arXiv 2508.15487), `entropy`",
    defaults={"steps": None, "schedule": "even"},
    commit=commit,
    needs=frozenset({"entropy"}),
    scheduled=True,
)
