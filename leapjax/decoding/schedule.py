"""The number of positions that a fixed schedule commits in a pass.

Sources: LLaDA's `generate` (even), Dream's `diffusion_generate` (dream), SDAR's `generate.py`
(by_block); rules only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Int32

DREAM_EPS = 1e-3  # Dream's final time


def even(
    block_masks: Int32[Array, " B"], block_step: Int32[Array, " B"], passes: Int32[Array, " B"]
) -> Int32[Array, " B"]:
    """Spread commits evenly; the first passes take the remainder.

    `block_masks` is the number of open positions at the block's start, `block_step` the number of
    passes already made in the block, out of `passes`.

    >>> masks, passes = jnp.array([7, 7, 7]), jnp.array([3, 3, 3])
    >>> even(masks, jnp.array([0, 1, 2]), passes).tolist()
    [3, 2, 2]
    """
    return block_masks // passes + (block_step < block_masks % passes).astype(jnp.int32)


def by_block(
    block_length: int, block_step: Int32[Array, " B"], passes: Int32[Array, " B"]
) -> Int32[Array, " B"]:
    """Spread a block's commits evenly, as if all of it were open; for block-causal models.

    A block that begins with prompt tokens takes fewer passes. The result is at least 1 while
    `block_step`, the number of passes already made in the block, is below `block_length`.

    >>> by_block(8, jnp.array([0, 1, 2]), jnp.array([3, 3, 3])).tolist()
    [3, 3, 2]
    """
    return block_length // passes + (block_step < block_length % passes).astype(jnp.int32)


def dream(
    masks: Int32[Array, " B"], block_step: Int32[Array, " B"], passes: Int32[Array, " B"]
) -> Int32[Array, " B"]:
    """`int(masks (1 - s / t))` over times from 1 down to 1e-3; the last pass commits all.

    A pass that commits nothing still counts as a step. `masks` is the number of open positions now,
    `block_step` the number of passes already made, out of `passes`.

    >>> dream(jnp.array([8, 6, 4, 2]), jnp.array([0, 1, 2, 3]), jnp.full(4, 4)).tolist()
    [1, 1, 1, 2]
    """
    total = passes.astype(jnp.float32)

    def time(i):
        # Like linspace, count from the nearer end, so that both ends are exact.
        gap = jnp.float32(DREAM_EPS - 1.0) / total
        i = i.astype(jnp.float32)
        return jnp.where(i < (total + 1) / 2, 1 + gap * i, DREAM_EPS - gap * (total - i))

    share = 1 - time(block_step + 1) / time(block_step)
    some = jnp.floor(masks.astype(jnp.float32) * share).astype(jnp.int32)
    return jnp.where(block_step >= passes - 1, masks, some)
