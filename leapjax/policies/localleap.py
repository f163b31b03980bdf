"""Commit anchors, their sure-enough neighbours, and always the surest position.

Source: LocalLeap, arXiv 2510.07081: anchors have at least the anchor threshold;
within `radius` of one the relaxed threshold suffices. Defaults are the paper's for
LLaDA-8B-Instruct.

Beyond the paper, and off by default: `decay` lets the relaxed threshold rise with each further
position from the nearest anchor that reaches there, and `radius_left`, `radius_right` let an
anchor reach less or farther on one side.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from leapjax.policies.base import Policy, surest
from leapjax.types import ANCHOR, PROPAGATED, TOP1, Decision


def anchor_distances(anchor):
    """Distance of each position to the nearest anchor at or before it, and at or behind it.

    Two running extrema, so the cost is linear in the window whatever the radius.

    Args:
      anchor: (B, W) bool.

    Returns:
      Two (B, W) int32; at least 2 ** 29 where there is no such anchor.
    """
    far = jnp.int32(2**29)
    slots = jnp.broadcast_to(jnp.arange(anchor.shape[1], dtype=jnp.int32), anchor.shape)
    left = lax.cummax(jnp.where(anchor, slots, -far), axis=1)
    right = lax.cummin(jnp.where(anchor, slots, 2 * far), axis=1, reverse=True)
    return slots - left, right - slots


def commit(proposal, masked, info):
    """Choose the positions that this pass commits.

    Args:
      proposal: `.confidence` (B, W) float32 in [0, 1].
      masked: (B, W) bool, the active block's open positions.
      info: `.options.threshold`, `.relaxed_threshold` (B,) float32, `.radius` (B,) int32;
        `.options.own`: `decay` (B,) float32, `radius_left` and `radius_right` (B,) int32, those
        that are left out as in the paper.

    Returns:
      A Decision; kinds anchor, propagated, and top1 for a surest position that is neither.
    """
    options = info.options
    confidence = proposal.confidence
    anchor = masked & (confidence >= options.threshold[:, None])
    # Clipped to the window: without an anchor the distance is large, not infinite.
    w = jnp.int32(anchor.shape[1])
    before, behind = anchor_distances(anchor)
    # An anchor before a position reaches it to the anchor's right.
    right = jnp.minimum(options.own.get("radius_right", options.radius), w)[:, None]
    left = jnp.minimum(options.own.get("radius_left", options.radius), w)[:, None]
    before = jnp.where(before <= right, before, w + 1)
    behind = jnp.where(behind <= left, behind, w + 1)
    distance = jnp.minimum(before, behind)
    steps = (distance - 1).astype(jnp.float32)  # the nearest neighbours need no more
    decay = options.own.get("decay", jnp.zeros_like(options.relaxed_threshold))
    needed = options.relaxed_threshold[:, None] + decay[:, None] * steps
    propagated = masked & (distance <= w) & (confidence >= needed)
    kind = jnp.where(anchor, ANCHOR, jnp.where(propagated, PROPAGATED, TOP1)).astype(jnp.int8)
    return Decision(anchor | propagated | surest(confidence, masked), kind)


POLICY = Policy(
    name="localleap",
    source="arXiv 2510.07081",
    defaults={
        "threshold": 0.9,
        "relaxed_threshold": 0.75,
        "radius": 4,
        "radius_left": None,
        "radius_right": None,
        "decay": 0.0,
    },
    commit=commit,
)
