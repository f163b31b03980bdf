"""Explore slowly until the end of the confident span settles, then fill that span fast.

Source: SlowFast Sampling, arXiv 2506.10848, as its authors' code does it
(sampling_utils/generate_slow_fast_sampling.py); the paper's text was not checked. A cycle:

1. For `explore_steps` passes, estimate where the span ends: after the farthest open position
   with confidence of at least `explore_threshold` (if there is none, one position on). Once two
   consecutive estimates have a standard deviation below 1, the span ends at the last of them;
   failing that, at the mean of the last two. Commit within the rest of the block.
2. Commit within the span until it is filled; the next cycle begins at its end.

In both, positions of at least `threshold` commit if there are two or more, else the most confident.
Left out are the code's cache of outputs after the span, which is another approximation (here a KV
cache does that), and its passes over a span that is already filled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from leapjax.policies.base import Parameter, Policy, commits, reaches, surest
from leapjax.policies.parameters import THRESHOLD
from leapjax.types import ANCHOR, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Memory, Pass
    from leapjax.types import Decision, Proposal


def memory(w: int, v: int) -> Memory:
    """Start and end of the cycle's span, passes explored, last estimate, whether it settled."""
    names = ("start", "end", "explored", "estimate", "settled")
    return {name: ((), np.int32) for name in names}


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits.

    The kind is anchor for two or more above the threshold, else top1.
    """
    numbers, m, confidence = info.parameters, info.memory, proposal.confidence
    w, steps = masked.shape[1], numbers["explore_steps"]
    place = info.columns - info.block[:, None]  # within the block
    span = masked & (place >= m["start"][:, None]) & (place < m["end"][:, None])
    # A filled span ends its cycle.
    over = (m["explored"] >= steps) & ~jnp.any(span, axis=1)
    start = jnp.where(over, m["end"], m["start"])
    explored = jnp.where(over, 0, m["explored"])
    settled = jnp.where(over, 0, m["settled"])
    exploring = explored < steps

    rest = masked & (place >= start[:, None])
    hopeful = rest & (confidence >= numbers["explore_threshold"][:, None])
    farthest = jnp.max(jnp.where(hopeful, place, start[:, None]), axis=1)
    estimate = jnp.clip(farthest + 1, 1, w)
    last = explored == steps - 1
    alone = explored == 0  # no estimate before this one
    steady = ~alone & (jnp.abs(estimate - m["estimate"]) < 2)
    mean = jnp.where(alone, estimate, (estimate + m["estimate"]) // 2)
    decide = exploring & (settled == 0) & (last | ~alone)
    end = jnp.where(decide, jnp.where(steady, estimate, mean), m["end"])
    settled = jnp.where(decide & (steady | last), 1, settled)

    scope = jnp.where(exploring[:, None], rest, span)
    sure = scope & reaches(confidence, numbers["threshold"])
    many = jnp.sum(sure, axis=1, dtype=jnp.int32)[:, None] > 1
    chosen = jnp.where(many, sure, surest(confidence, scope))
    after = {
        "start": start,
        "end": end.astype(jnp.int32),
        "explored": jnp.where(exploring, explored + 1, explored),
        "estimate": jnp.where(exploring, estimate, m["estimate"]).astype(jnp.int32),
        "settled": settled.astype(jnp.int32),
    }
    return commits(chosen, jnp.where(many, ANCHOR, TOP1), after)


POLICY = Policy(
    name="slowfast",
    source="SlowFast Sampling, arXiv 2506.10848",
    commit=commit,
    parameters=(
        THRESHOLD,
        Parameter(
            "explore_threshold", float, "minimum confidence where a span ends", 0.3, low=0, high=1
        ),
        Parameter("explore_steps", int, "slow passes at the start of a span", 6, low=1),
    ),
    label="SlowFast (0.9, 0.3, 6 passes)",
    memory=memory,
)
