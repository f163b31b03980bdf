"""Caches that a full pass refreshes when a row begins a block: `prefix` and `dual`.

A row's block begins with a full pass, which refreshes its keys and values and also commits.
The block's later passes recompute a part of the sequence against the cached rest, which is
stale until the next block begins. That is the approximation. Source: Fast-dLLM,
arXiv 2505.22618.

Rows refresh on their own: at most `refresh_group` rows in an iteration, the longest waiting
first. A row that waits does nothing. So one row's refresh does not make the batch pay for a
full pass, and a row's steps and tokens do not depend on its batch mates.

Dream's output at i - 1 predicts position i, so its window starts one column early.

Shapes: B rows, R = B or 2 B with guidance, G refreshed (2 G with guidance), T columns,
S columns computed, W block, L layers, K KV heads, E head width, D width.
"""

from __future__ import annotations

from abc import abstractmethod

import jax.numpy as jnp
from jax import lax

from leapjax.caches.base import Cache, Outcome
from leapjax.models import transformer
from leapjax.ops.primitives import take


class Refreshing(Cache):
    """A cache that is exact in a block's first pass and stale in the others."""

    stores, exact = True, False

    @abstractmethod
    def end(self, rows):
        """Column behind the last one that a pass stores, () or (B, 1) int32.

        None if a pass stores every column that it computes.
        """

    def next_block(self, due, moved, iteration):
        """Every row that begins a block waits from now on; see `Cache.next_block`."""
        return jnp.where(moved, iteration, due)

    def steady(self, params, rows, columns, cache):
        """Recompute `columns(program)` columns of each row against its cache.

        Rows that wait or are done are computed too and their cache is overwritten; nobody reads
        it before their next full pass. See `Cache.steady`.
        """
        state, program = rows.state, rows.program
        size, end = self.columns(program), self.end(rows)
        low = state.block - lead(program)
        start = jnp.clip(low, 0, program.length - size)
        window = start[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
        replace = None if end is None else (window >= low[:, None]) & (window < end)
        hidden, cache = transformer.window_states(
            params,
            program.model,
            take(rows.ids(), rows.both(window)),
            rows.both(_places(rows, window)),
            rows.both(_valid(rows)),
            cache,
            rows.both(start),
            None if replace is None else rows.both(replace),
            program.compute_dtype,
        )
        outputs = rows.predictors(columns) - start[:, None]
        return take(hidden, rows.both(outputs)), cache

    def forward(self, params, rows, columns):
        """A full pass for some waiting rows, `steady` for those that do not wait."""
        state, program = rows.state, rows.program
        waiting = ~state.done & (state.due >= 0)
        moving = ~state.done & (state.due < 0)
        b, w = columns.shape
        blank = jnp.zeros(
            (2 * b if program.guidance else b, w, program.model.d_model), program.compute_dtype
        )
        hidden, cache = _if_any(
            moving,
            lambda carry: self.steady(params, rows, columns, carry[1]),
            (blank, state.cache),
        )
        chosen = _chosen(state.due, waiting, program.refresh_group or b)
        hidden, cache = _refresh(params, rows, columns, waiting, chosen, hidden, cache)
        full = jnp.zeros((b,), bool).at[chosen].set(True, mode="drop")
        return Outcome(hidden, moving | full, full, cache)


def lead(program) -> int:
    """Columns before the block whose outputs predict it: 1 where the outputs are shifted."""
    return 1 if program.model.shift_logits else 0


def _chosen(due, waiting, group: int):
    """The rows that refresh now: the longest waiting first, slots break ties.

    Returns:
      (G,) int32; 2 B for a place that no row needs, which is dropped when written.
    """
    b = due.shape[0]
    order = jnp.argsort(jnp.where(waiting, due, jnp.int32(2**31 - 1)), stable=True)
    chosen = order[: min(group, b)].astype(jnp.int32)
    return jnp.where(waiting[chosen], chosen, jnp.int32(2 * b))


def _refresh(params, rows, columns, waiting, chosen, hidden, cache):
    """A full pass of the chosen rows, if any row waits.

    Returns:
      `hidden` (R, W, D) and the cache, replaced in those rows.
    """
    b, program = columns.shape[0], rows.program
    picked = jnp.minimum(chosen, b - 1)
    source, target = picked, chosen
    if program.guidance:  # the unconditional branch of row i is row b + i
        source = jnp.concatenate([picked, picked + b])
        target = jnp.concatenate([chosen, jnp.where(chosen < b, chosen + b, jnp.int32(2 * b))])
    ids = rows.ids()[source]

    def refresh(carry):
        hidden, cache, ids = carry
        everything = jnp.broadcast_to(
            jnp.arange(program.length, dtype=jnp.int32)[None, :], rows.state.tokens.shape
        )
        fresh, cache = transformer.refresh_states(
            params,
            program.model,
            ids,
            rows.both(_places(rows, everything))[source],
            rows.both(_valid(rows))[source],
            cache,
            target,
            program.compute_dtype,
            rows.both(rows.predictors(columns))[source],
        )
        # Nobody reads the ids again. That they change keeps the pass inside the loop: XLA moves
        # loop-invariant code out, where it would run every time.
        return hidden.at[target].set(fresh, mode="drop"), cache, jnp.zeros_like(ids)

    hidden, cache, _ = _if_any(waiting, refresh, (hidden, cache, ids))
    return hidden, cache


def _if_any(flags, function, carry):
    """`function(carry)` if any flag is set, else `carry`.

    A loop of one or no iterations: a loop updates its carry in place, where a conditional
    would copy the cache.
    """
    return lax.fori_loop(0, jnp.any(flags).astype(jnp.int32), lambda _, c: function(c), carry)


def _places(rows, columns):
    """Rotary positions of columns: (B, S) int32, counted from the row's first token."""
    return jnp.maximum(columns - rows.state.first[:, None], 0)


def _valid(rows):
    """(B, T) bool: columns that hold a token."""
    return jnp.arange(rows.program.length, dtype=jnp.int32)[None, :] >= rows.state.first[:, None]
