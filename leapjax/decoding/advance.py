"""The end of a step: rows with a finished block move to their next block, or end.

Shapes: B rows, T columns, W block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.decoding.program import Program
from leapjax.decoding.state import DecodeState
from leapjax.types import EARLY_STOPS, NONE

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int32


def is_stop(tokens: Int32[Array, "B S"], program: Program) -> Bool[Array, "B S"]:
    """(B, S) bool: tokens that end an answer."""
    found = [tokens == stop for stop in program.stop_ids]
    return jnp.any(jnp.stack(found), axis=0)


def advance(
    state: DecodeState,
    live: Bool[Array, " B"],
    chosen: Bool[Array, " B"],
    final: Bool[Array, " B"] | None,
    program: Program,
) -> DecodeState:
    """Move rows with a finished block to their next block, or end them.

    `state` is that after the pass's commits. `live` are the rows that the pass served, `chosen`
    those in which it committed a stop id, `final` those whose block is finished if it has no masks
    (None: all of them).
    """
    w = program.block_length
    column = jnp.arange(program.length, dtype=jnp.int32)[None, :]
    block = state.block[:, None]
    in_block = (column >= block) & (column < block + w)
    finished = live & ~jnp.any(state.open & in_block, axis=1)
    if final is not None:
        finished = finished & final
    kind = state.options.early_stop
    decided = ~state.given & ~state.open & (column < state.end[:, None])
    stops = decided & is_stop(state.tokens, program)
    ended = jnp.any(in_block & stops, axis=1)
    # No open position stands before the first stop id.
    first = jnp.argmax(stops, axis=1).astype(jnp.int32)[:, None]
    settled = live & jnp.any(stops, axis=1) & ~jnp.any(state.open & (column < first), axis=1)
    off, _, at_once, on_eos = range(len(EARLY_STOPS))
    stop = (
        (finished & ended & (kind != off))
        | (settled & (kind == at_once))
        | (settled & chosen & (kind == on_eos))
    )
    eos = jnp.int32(program.model.eos_token_id)
    still_open = state.open & ~stop[:, None]
    over = stop | (finished & ~jnp.any(still_open, axis=1))
    fill = stop[:, None] & state.open
    # All behind the first stop id, decided or not. Fast-dLLM v2 cuts every answer that stops.
    cuts = (kind == on_eos) | (stop & (program.model.canvas == "whole_blocks"))
    behind = (over & cuts & jnp.any(stops, axis=1))[:, None]
    behind = behind & (column > first) & ~state.given & (column < state.end[:, None])
    # The next block is the first block with an open position.
    next_open = jnp.argmax(still_open, axis=1).astype(jnp.int32)
    ahead = state.block + (next_open - state.block) // w * w
    moved = finished & ~over
    block = jnp.where(moved, ahead, state.block)
    in_next = (column >= block[:, None]) & (column < block[:, None] + w)
    masks = jnp.sum(still_open & in_next, axis=1, dtype=jnp.int32)
    return state.replace(
        tokens=jnp.where(fill | behind, eos, state.tokens),
        open=still_open,
        done=state.done | over,
        block=block,
        block_masks=jnp.where(moved, masks, state.block_masks),
        block_step=jnp.where(moved, 0, state.block_step),
        commit_step=jnp.where(behind, -1, state.commit_step),
        commit_kind=jnp.where(behind, jnp.int8(NONE), state.commit_kind),
        commit_confidence=jnp.where(behind, 0.0, state.commit_confidence),
    )
