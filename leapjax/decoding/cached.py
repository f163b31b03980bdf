"""KV caches: the model's part of a pass when a block reuses keys and values.

A row's block begins with a full pass that refreshes its cache and commits; the block's
later passes recompute only the suffix from the block on (`prefix`) or the block itself
(`dual`) against the cached rest, which is stale until the next block begins. That is the
approximation. Source: Fast-dLLM, arXiv 2505.22618.

Rows refresh on their own: at most `refresh_group` rows in an iteration, the longest
waiting first; a row that waits does nothing. So one row's refresh does not make the batch
pay for a full pass, and a row's steps and tokens don't depend on its mates.

Dream's output at i - 1 predicts position i, so its window starts one column early.

Shapes: B rows, R = B or 2 B with guidance, G refreshed, T columns, S window computed,
W block, L layers, K KV heads, E head width, D width.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.decoding.forward import Outcome, branches, doubled
from leapjax.decoding.program import Program
from leapjax.decoding.state import DecodeState
from leapjax.decoding.window import predictors
from leapjax.models import transformer
from leapjax.models.layers import take


def cache_shape(program: Program, slots: int) -> tuple[int, ...]:
    """Shape (L, R, T, K, E) of the keys, and of the values."""
    model = program.model
    rows = slots * 2 if program.guidance else slots
    return (model.n_layers, rows, program.length, model.n_kv_heads, model.head_dim)


def with_cache(state: DecodeState, program: Program, sharding=None) -> DecodeState:
    """The state with an empty cache; rows wait for their first full pass.

    Args:
      state: from `initial_state`.
      program: with `cache` prefix or dual.
      sharding: shape -> where the keys, and the values, are made; None is the default device.
    """
    shape = cache_shape(program, state.done.shape[0])
    where = None if sharding is None else sharding(shape)
    keys, values = (jnp.zeros(shape, program.compute_dtype, device=where) for _ in range(2))
    return dataclasses.replace(state, cache=(keys, values))


def forward(params, state: DecodeState, columns, program: Program) -> Outcome:
    """Full pass for some waiting rows, window pass for the others.

    Args:
      params: the model's pytree.
      state: B rows with a cache.
      columns: (B, W) int32, each row's window.
      program: static structure.
    """
    waiting = ~state.done & (state.due >= 0)
    moving = ~state.done & (state.due < 0)
    b, w = columns.shape
    rows = 2 * b if program.guidance else b
    blank = jnp.zeros((rows, w, program.model.d_model), program.compute_dtype)

    def window(cache):
        return window_pass(params, state, columns, cache, program)

    hidden, cache = _if_any(moving, lambda carry: window(carry[1]), (blank, state.cache))
    group = min(program.refresh_group or b, b)
    # Longest waiting first; slots break ties; rows that don't wait come last.
    order = jnp.argsort(jnp.where(waiting, state.due, jnp.int32(2**31 - 1)), stable=True)
    chosen = order[:group].astype(jnp.int32)
    # An index beyond the batch is dropped when written, so idle picks change nothing.
    chosen = jnp.where(waiting[chosen], chosen, jnp.int32(2 * b))

    rows = jnp.minimum(chosen, b - 1)
    # The unconditional branch of row i is row b + i.
    source = _both(rows, rows + b, program)
    target = _both(chosen, jnp.where(chosen < b, chosen + b, jnp.int32(2 * b)), program)
    ids = branches(state, program)[source]

    def refresh(carry):
        hidden, cache, ids = carry
        hidden, cache = _refresh(
            params, state, columns, source, target, ids, hidden, cache, program
        )
        # Nobody reads them again. That they change keeps the pass inside: XLA moves what
        # does not depend on the carry out of the loop, where it would run every time.
        return hidden, cache, jnp.zeros_like(ids)

    hidden, cache, _ = _if_any(waiting, refresh, (hidden, cache, ids))
    full = jnp.zeros((b,), bool).at[chosen].set(True, mode="drop")
    return Outcome(hidden, moving | full, full, cache)


def _if_any(flags, function, carry):
    """`function(carry)` if any flag is set, else `carry`.

    A loop of one or no turns: a loop updates its carry in place where a conditional
    would copy the cache.
    """
    return lax.fori_loop(0, jnp.any(flags).astype(jnp.int32), lambda _, c: function(c), carry)


def _places(columns, state: DecodeState):
    """Rotary positions of some columns: (B, S) int32, counted from the row's first token."""
    return jnp.maximum(columns - state.first[:, None], 0)


def _valid(state: DecodeState, program: Program):
    """(B, T) bool: real columns."""
    return jnp.arange(program.length, dtype=jnp.int32)[None, :] >= state.first[:, None]


def _both(rows, unconditional, program: Program):
    """Rows of the conditional branch, followed with guidance by the unconditional one's."""
    return jnp.concatenate([rows, unconditional]) if program.guidance else rows


def _refresh(params, state, columns, source, target, ids, hidden, cache, program: Program):
    """Full pass of the chosen rows: their cache and their window's hidden states.

    `source` (G or 2 G,) int32 holds the rows that are computed, `ids` their (…, T) tokens, and
    `target` where they go, out of range = nowhere; `hidden` (R, W, D) is replaced there, as
    are the rows of the cache (L, R, T, K, E).
    """
    everything = jnp.broadcast_to(
        jnp.arange(program.length, dtype=jnp.int32)[None, :], state.tokens.shape
    )
    places = doubled(_places(everything, state), program)[source]
    valid = doubled(_valid(state, program), program)[source]
    outputs = doubled(predictors(columns, state.first, program), program)[source]
    fresh, cache = transformer.refresh_states(
        params, program.model, ids, places, valid, cache, target, program.compute_dtype, outputs
    )
    return hidden.at[target].set(fresh, mode="drop"), cache


def window_pass(params, state: DecodeState, columns, cache, program: Program):
    """Recompute each row's block (dual) or everything from it on (prefix).

    Rows that wait or are done are computed too and their cache overwritten; nobody reads
    it before their next full pass.
    """
    t, w = program.length, program.block_length
    lead = 1 if program.model.shift_logits else 0
    # Prefix: the canvas is the longest suffix; infilled sequences may be open anywhere.
    longest = min(t, (program.gen_length if program.cache == "prefix" else w) + lead)
    if program.cache == "prefix" and program.infill:
        longest = t
    low = state.block - lead
    start = jnp.clip(low, 0, t - longest)
    window = start[:, None] + jnp.arange(longest, dtype=jnp.int32)[None, :]
    high = jnp.int32(t) if program.cache == "prefix" else (state.block + np.int32(w))[:, None]
    # A generated block's window is the block; otherwise it may reach over what must stay.
    exact = program.cache == "dual" and not program.infill
    replace = None if exact else (window >= low[:, None]) & (window < high)
    hidden, cache = transformer.window_states(
        params,
        program.model,
        take(branches(state, program), doubled(window, program)),
        doubled(_places(window, state), program),
        doubled(_valid(state, program), program),
        cache,
        doubled(start, program),
        None if replace is None else doubled(replace, program),
        program.compute_dtype,
    )
    outputs = predictors(columns, state.first, program) - start[:, None]
    return take(hidden, doubled(outputs, program)), cache
