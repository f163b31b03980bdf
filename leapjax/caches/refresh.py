"""Caches that a full pass refreshes when a row begins a block: `prefix` and `dual`.

A block begins with a full pass, which refreshes the row's keys and values and also commits. Later
passes of the block recompute a part of the sequence. They attend to cached keys and values of the
rest, which stay stale until the next block: this is the approximation. Source: Fast-dLLM, arXiv
2505.22618.

At most `refresh_group` rows refresh per iteration, the longest waiting first. A waiting row does
nothing. So one row's refresh does not cost the whole batch a full pass, and a row's steps and
tokens do not depend on the other rows.

Dream's output at i - 1 predicts position i, so its window starts one column early.

Shapes: B rows, R = B or 2 B with guidance, G refreshed (2 G with guidance), T columns,
S columns computed, W block, L layers, K KV heads, E head width, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from leapjax.caches.base import Cache, Outcome
from leapjax.models import transformer
from leapjax.ops.primitives import take


class Refreshing(Cache):
    """A cache that is exact in a block's first pass and stale in later ones."""

    stores, exact = True, False

    @abstractmethod
    def end(self, rows) -> Any:
        """The end of the columns that a pass recomputes, (B,) int32."""

    def next_block(self, due, moved, iteration):
        """Rows that begin a block wait from this iteration on; see `Cache.next_block`."""
        return jnp.where(moved, iteration, due)

    @jax.named_scope("window pass")
    def steady(self, params, rows, columns, cache):
        """Recompute `columns(program)` columns of each row against its cache; see `Cache.steady`.

        The last windows of a row may reach back over columns that keep their cached keys and
        values.
        """
        state, program = rows.state, rows.program
        size = self.columns(program)
        low = state.block - lead(program)
        start = jnp.clip(low, 0, program.length - size)
        window = start[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
        hidden = transformer.window_states(
            params,
            program.model,
            take(rows.ids(), rows.both(window)),
            rows.both(_rope_positions(rows, window)),
            rows.both(_valid(rows)),
            cache,
            rows.both(start),
            (rows.both(low), rows.both(self.end(rows))),
            program.compute_dtype,
        )
        outputs = rows.predictors(columns) - start[:, None]
        return take(hidden, rows.both(outputs))

    def forward(self, params, rows, columns):
        """A full pass for some waiting rows, `steady` for those that do not wait."""
        state, program = rows.state, rows.program
        waiting = ~state.done & (state.due >= 0)
        moving = ~state.done & (state.due < 0)
        b, w = columns.shape
        blank = jnp.zeros(
            (2 * b if program.guidance else b, w, program.model.d_model), program.compute_dtype
        )
        hidden = lax.cond(
            jnp.any(moving),
            lambda: self.steady(params, rows, columns, state.cache),
            lambda: blank,
        )
        chosen = _longest_waiting(state.due, waiting, program.refresh_group or b)
        hidden, cache = _refresh(params, rows, columns, waiting, chosen, hidden, state.cache)
        full = jnp.zeros((b,), bool).at[chosen].set(True, mode="drop")
        return Outcome(hidden, moving | full, full, cache)


def lead(program) -> int:
    """Columns by which the window starts before the block: 1 if outputs are shifted, else 0."""
    return 1 if program.model.shift_logits else 0


def _longest_waiting(due, waiting, group: int):
    """Select the rows to refresh: the longest waiting first; ties go to the lower slot.

    Returns:
      (G,) int32 slots; unused entries are 2 B, out of range, so that writes drop them.
    """
    b = due.shape[0]
    order = jnp.argsort(jnp.where(waiting, due, jnp.int32(2**31 - 1)), stable=True)
    chosen = order[: min(group, b)].astype(jnp.int32)
    return jnp.where(waiting[chosen], chosen, jnp.int32(2 * b))


def _refresh(params, rows, columns, waiting, chosen, hidden, cache):
    """Run a full pass over the chosen rows, if any row waits.

    Returns:
      `hidden` (R, W, D) and the cache, both updated in the chosen rows.
    """
    b, program = columns.shape[0], rows.program
    picked = jnp.minimum(chosen, b - 1)
    source, target = picked, chosen
    if program.guidance:  # the unconditional branch of row i is row b + i
        source = jnp.concatenate([picked, picked + b])
        target = jnp.concatenate([chosen, jnp.where(chosen < b, chosen + b, jnp.int32(2 * b))])
    ids = rows.ids()[source]

    @jax.named_scope("refresh pass")
    def refresh(carry):
        hidden, cache, ids = carry
        all_columns = jnp.broadcast_to(
            jnp.arange(program.length, dtype=jnp.int32)[None, :], rows.state.tokens.shape
        )
        fresh, cache = transformer.refresh_states(
            params,
            program.model,
            ids,
            rows.both(_rope_positions(rows, all_columns))[source],
            rows.both(_valid(rows))[source],
            cache,
            target,
            program.compute_dtype,
            rows.both(rows.predictors(columns))[source],
        )
        # The zeroed ids are never read. They make the body loop-variant; otherwise XLA's
        # loop-invariant code motion would hoist the pass, and it would run in every step.
        return hidden.at[target].set(fresh, mode="drop"), cache, jnp.zeros_like(ids)

    hidden, cache, _ = _if_any(waiting, refresh, (hidden, cache, ids))
    return hidden, cache


def _if_any(flags, function, carry):
    """`function(carry)` if any flag is set, else `carry`.

    This is a loop of one or zero iterations, because a loop updates its carry in place and a
    conditional copies the cache.
    """
    return lax.fori_loop(0, jnp.any(flags).astype(jnp.int32), lambda _, c: function(c), carry)


def _rope_positions(rows, columns):
    """RoPE positions of columns: (B, S) int32, counted from the row's first token."""
    return jnp.maximum(columns - rows.state.first[:, None], 0)


def _valid(rows):
    """(B, T) bool: columns that hold a token."""
    return jnp.arange(rows.program.length, dtype=jnp.int32)[None, :] >= rows.state.first[:, None]
