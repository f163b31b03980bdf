"""Prefill: store the keys and values of a prompt's whole blocks, for block-causal models.

    tokens of a row -> pieces of whole blocks, one pass each -> cache, `DecodeState.stored`

A piece may begin at any block. A column's keys and values do not depend on where its piece begins,
so a row may start from columns that another row has stored.

Shapes: B rows, T columns, W block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.decoding.forward import Rows
from leapjax.decoding.program import Program
from leapjax.decoding.state import DecodeState, prefill_end
from leapjax.models import block_passes
from leapjax.ops.cache import read_rows
from leapjax.ops.primitives import take

if TYPE_CHECKING:
    from jaxtyping import Array, Int32

    from leapjax.models.transformer import Weights

COLUMNS = 256  # columns of a piece, rounded up to whole blocks


def prefills(program: Program) -> bool:
    """Whether the program's rows begin with a prefill."""
    return program.model.block_causal and program.kv_cache.stores


def copy_prefix(
    state: DecodeState,
    source: Int32[Array, ""],
    row: Int32[Array, ""],
    end: Int32[Array, ""],
    program: Program,
) -> DecodeState:
    """Copy the cached columns before `end` from one row to another.

    Args:
      state: B rows, with a cache.
      source: () int32, a row whose cache holds these columns.
      row: () int32, the row that gets them.
      end: () int32.
      program: static structure.
    """
    held = jnp.arange(program.length, dtype=jnp.int32) < end

    def copied(c):
        for i in range(2 if program.guidance else 1):
            shift = i * state.done.shape[0]
            old = lax.dynamic_index_in_dim(c, row + shift, 1)
            new = lax.dynamic_index_in_dim(c, source + shift, 1)
            new = jnp.where(held[None, None, None, :, None], new, old)
            c = lax.dynamic_update_index_in_dim(c, new, row + shift, 1)
        return c

    return state.replace(cache=tuple(copied(c) for c in state.cache))


def prefill(
    params: Weights,
    state: DecodeState,
    row: Int32[Array, ""],
    begin: Int32[Array, ""],
    program: Program,
) -> DecodeState:
    """Store a row's columns from `begin` to the end of its prefill; pure and traceable.

    Args:
      params: the model's pytree.
      state: B rows, with a cache.
      row: () int32.
      begin: () int32, a block's first column; the columns before are stored already.
      program: static structure.

    Returns:
      The state, with the row's `stored` at the end of its prefill.
    """
    w, t = program.block_length, program.length
    size = min(t, -(-COLUMNS // w) * w)
    chosen = row[None]
    part = Rows(state, program).select(chosen, jnp.ones(1, bool))
    first_open = take(part.state.open, part.state.block[:, None])[0, 0]
    end = prefill_end(part.state.block[0], first_open, program)
    both = jnp.concatenate([chosen, chosen + state.done.shape[0]]) if program.guidance else chosen
    own = tuple(read_rows(c, both) for c in state.cache)
    ids = part.ids()

    @jax.named_scope("prefill")
    def piece(carry):
        at, own = carry
        start = jnp.minimum(at, np.int32(t - size))
        window = start + jnp.arange(size, dtype=jnp.int32)[None, :]
        window = jnp.broadcast_to(window, (ids.shape[0], size))
        own = block_passes.prefill_states(
            params,
            program.model,
            take(ids, window),
            window,  # rows are left-aligned: a column is a position
            own,
            start,
            program.compute_dtype,
        )
        return at + np.int32(size), own

    _, own = lax.while_loop(lambda carry: carry[0] < end, piece, (begin, own))
    cache = state.cache
    for i in range(both.shape[0]):
        cache = tuple(
            lax.dynamic_update_slice_in_dim(c, x[:, i : i + 1], both[i], 1)
            for c, x in zip(cache, own, strict=True)
        )
    rows = jnp.arange(state.done.shape[0], dtype=jnp.int32)
    return state.replace(cache=cache, stored=jnp.where(rows == row, end, state.stored))


def prefill_all(params: Weights, state: DecodeState, program: Program) -> DecodeState:
    """Prefill every row, one after the other.

    Args:
      params: the model's pytree.
      state: B rows before their first pass, with a cache.
      program: static structure.
    """

    def one(row, state):
        return prefill(params, state, row, jnp.int32(0), program)

    return lax.fori_loop(jnp.int32(0), jnp.int32(state.done.shape[0]), one, state)
