"""Prefill: store the keys and values of a prompt's whole blocks, for block-causal models.

    tokens of a row -> pieces of whole blocks, one pass each -> cache, `DecodeState.stored`

A piece may begin at any block. A column's keys and values depend neither on where its piece begins
nor on T, so a row may start from columns that another row has stored, of this program or another.

Shapes: B rows, R = B or 2 B with guidance, T columns, S columns of a piece, L layers, K KV heads,
E head width.
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


def piece_columns(program: Program) -> int:
    """Columns of a piece.

    >>> from leapjax.decoding import program_for
    >>> from leapjax.testing import tiny_config
    >>> from leapjax import DecodeConfig
    >>> shape = dict(dtype="float32", eot_token_id=None)
    >>> config, model = DecodeConfig(gen_length=8), tiny_config("sdar")
    >>> [piece_columns(program_for(config, model, length=n, **shape)) for n in (40, 1032)]
    [40, 256]
    """
    w = program.block_length
    return min(program.length, -(-COLUMNS // w) * w)


def copies(program: Program) -> tuple:
    """What two programs must agree in for one to read the columns that the other has stored.

    A column's keys and values depend on the tokens up to its block's end and on the shapes of the
    pass that stores them: the columns of a piece and the tiles of attention, not on T.
    """
    return program.model, program.guidance, program.dtype, piece_columns(program)


def read_piece(
    cache: tuple[Array, ...], row: Int32[Array, ""], start: Int32[Array, ""], program: Program
) -> tuple[Array, ...]:
    """The keys and values of a piece of a row, (L, 1, K, S, E) each; with guidance (L, 2, K, S, E).

    `cache` has those of all rows, (L, R, K, T, E) each; `start` is the piece's first column, at
    most T less its columns.
    """
    places = _places(cache, row, program)
    size = piece_columns(program)
    each = [lax.dynamic_slice_in_dim(c, start, size, 3) for c in cache]
    return tuple(
        jnp.concatenate([lax.dynamic_slice_in_dim(c, at, 1, 1) for at in places], 1) for c in each
    )


def write_piece(
    state: DecodeState,
    piece: tuple[Array, ...],
    row: Int32[Array, ""],
    start: Int32[Array, ""],
    program: Program,
) -> DecodeState:
    """Put the keys and values of a piece, of any row of the same prefix, into a row at `start`."""
    cache = state.cache
    for i, at in enumerate(_places(cache, row, program)):
        place = (0, at, 0, start, 0)
        cache = tuple(
            lax.dynamic_update_slice(c, x[:, i : i + 1], place)
            for c, x in zip(cache, piece, strict=True)
        )
    return state.replace(cache=cache)


def _places(cache, row, program: Program):
    """The places of a row in the cache: with guidance, its second copy too."""
    slots = cache[0].shape[1] // 2
    return (row, row + np.int32(slots)) if program.guidance else (row,)


def prefill(
    params: Weights,
    state: DecodeState,
    row: Int32[Array, ""],
    begin: Int32[Array, ""],
    program: Program,
) -> DecodeState:
    """Store a row's columns from `begin` to the end of its prefill; pure and traceable.

    `begin` is a block's first column; the columns before are stored already. The row's `stored` is
    then the end of its prefill.
    """
    t, size = program.length, piece_columns(program)
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
    """Prefill every row, one after the other, before their first pass."""

    def one(row, state):
        return prefill(params, state, row, jnp.int32(0), program)

    return lax.fori_loop(jnp.int32(0), jnp.int32(state.done.shape[0]), one, state)
