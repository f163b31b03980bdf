"""Commit anchors, their fairly confident neighbours, and always the most confident position.

Source: LocalLeap, arXiv 2510.07081: anchors have at least the anchor threshold; within
`radius` of an anchor, the relaxed threshold suffices. Defaults are the paper's for
LLaDA-8B-Instruct.

Three options go beyond the paper and are off by default: `decay` raises the relaxed threshold with
the distance to the nearest anchor in reach; `radius_left` and `radius_right` set the reach of
anchors per side; `editing_threshold` replaces committed tokens of the block by LLaDA2.1's rule
(`leapjax.policies.editing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from leapjax.errors import UserError
from leapjax.policies.base import Parameter, Policy, commits, reaches, surest
from leapjax.policies.editing import with_edits
from leapjax.policies.parameters import (
    EDITING_THRESHOLD,
    MAX_POST_STEPS,
    RADIUS,
    RELAXED_THRESHOLD,
    THRESHOLD,
)
from leapjax.types import ANCHOR, PROPAGATED, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int32

    from leapjax.config import DecodeConfig
    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def anchor_distances(
    anchor: Bool[Array, "B W"],
) -> tuple[Int32[Array, "B W"], Int32[Array, "B W"]]:
    """Distance of each position to the nearest anchor at or before it, and at or after it.

    Two running extrema compute it, so the cost is linear in the window for any radius. Without such
    an anchor, the distance is at least 2 ** 29.

    >>> before, behind = anchor_distances(jnp.array([[True, False, False, True]]))
    >>> jnp.minimum(before, behind).tolist()
    [[0, 1, 1, 0]]
    """
    far = jnp.int32(2**29)
    slots = jnp.broadcast_to(jnp.arange(anchor.shape[1], dtype=jnp.int32), anchor.shape)
    left = lax.cummax(jnp.where(anchor, slots, -far), axis=1)
    right = lax.cummin(jnp.where(anchor, slots, 2 * far), axis=1, reverse=True)
    return slots - left, right - slots


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits and, with editing, those that it edits.

    Kinds are anchor, propagated, and top1 for a most confident position that is neither.
    """
    numbers, confidence = info.parameters, proposal.confidence
    anchor = masked & reaches(confidence, numbers["threshold"])
    # Clipped to the window: without an anchor the distance is large, not infinite.
    w = jnp.int32(anchor.shape[1])
    before, behind = anchor_distances(anchor)
    # An anchor before a position reaches it to the anchor's right.
    right = jnp.minimum(numbers["radius_right"], w)[:, None]
    left = jnp.minimum(numbers["radius_left"], w)[:, None]
    before = jnp.where(before <= right, before, w + 1)
    behind = jnp.where(behind <= left, behind, w + 1)
    distance = jnp.minimum(before, behind)
    steps = (distance - 1).astype(jnp.float32)  # the nearest neighbours need no more
    needed = numbers["relaxed_threshold"][:, None] + numbers["decay"][:, None] * steps
    propagated = masked & (distance <= w) & (confidence >= needed)
    kind = jnp.where(anchor, ANCHOR, jnp.where(propagated, PROPAGATED, TOP1))
    decision = commits(anchor | propagated | surest(confidence, masked), kind)
    return with_edits(decision, proposal, info)


def check(config: DecodeConfig) -> None:
    """Refuse `radius` if both sides have their own radius: nothing would read it."""
    if None not in (config.radius, config.radius_left, config.radius_right):
        raise UserError(
            "radius is set, but radius_left and radius_right leave nothing to it; remove one"
        )


POLICY = Policy(
    name="localleap",
    source="arXiv 2510.07081",
    commit=commit,
    parameters=(
        THRESHOLD,
        RELAXED_THRESHOLD,
        RADIUS,
        Parameter(
            "radius_left", int, "how far an anchor reaches to its left", follows="radius", low=0
        ),
        Parameter(
            "radius_right", int, "how far an anchor reaches to its right", follows="radius", low=0
        ),
        Parameter(
            "decay",
            float,
            "how much relaxed_threshold rises with each further position",
            0.0,
            low=0,
            high=1,
        ),
        EDITING_THRESHOLD,
        MAX_POST_STEPS,
    ),
    check=check,
    label="LocalLeap (0.9, 0.75, radius 4)",
)
