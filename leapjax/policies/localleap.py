"""Commit anchors, their sure-enough neighbours, and always the surest position.

Source: LocalLeap, arXiv 2510.07081: anchors have at least the anchor threshold;
within `radius` of one the relaxed threshold suffices. Defaults are the paper's for
LLaDA-8B-Instruct.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from leapjax.policies.base import Policy, surest
from leapjax.types import ANCHOR, PROPAGATED, TOP1, Decision


def anchor_distance(anchor):
    """Distance of each position to the nearest anchor of its row.

    Two running extrema, so the cost is linear in the window whatever the radius.

    Args:
      anchor: (B, W) bool.

    Returns:
      (B, W) int32; at least 2 ** 29 where the row has no anchor.
    """
    far = jnp.int32(2**29)
    slots = jnp.broadcast_to(jnp.arange(anchor.shape[1], dtype=jnp.int32), anchor.shape)
    left = lax.cummax(jnp.where(anchor, slots, -far), axis=1)
    right = lax.cummin(jnp.where(anchor, slots, 2 * far), axis=1, reverse=True)
    return jnp.minimum(slots - left, right - slots)


def commit(proposal, masked, info):
    """Choose the positions that this pass commits.

    Args:
      proposal: `.confidence` (B, W) float32 in [0, 1].
      masked: (B, W) bool, the active block's open positions.
      info: `.options.threshold`, `.relaxed_threshold` (B,) float32 and `.radius` (B,) int32.

    Returns:
      A Decision; kinds anchor, propagated, and top1 for a surest position that is neither.
    """
    options = info.options
    confidence = proposal.confidence
    anchor = masked & (confidence >= options.threshold[:, None])
    # Clipped to the window: without an anchor the distance is large, not infinite.
    reach = jnp.minimum(options.radius, jnp.int32(anchor.shape[1]))
    near = anchor_distance(anchor) <= reach[:, None]
    propagated = masked & near & (confidence >= options.relaxed_threshold[:, None])
    kind = jnp.where(anchor, ANCHOR, jnp.where(propagated, PROPAGATED, TOP1)).astype(jnp.int8)
    return Decision(anchor | propagated | surest(confidence, masked), kind)


POLICY = Policy(
    name="localleap",
    source="arXiv 2510.07081",
    defaults={"threshold": 0.9, "relaxed_threshold": 0.75, "radius": 4},
    commit=commit,
)
