"""Caches that a full pass refreshes when a row begins a block: `prefix` and `dual`.

A block begins with a full pass, which refreshes the row's keys and values and also commits. Later
passes of the block recompute only a part of the sequence. They attend to cached keys and values of
the rest, which are stale until the next block: this is the approximation. Source: Fast-dLLM, arXiv
2505.22618.

A pass refreshes the rows that begin a block, in groups of `refresh_group` rows, and computes only
the window of the others. So one row's refresh does not cost the whole batch a full pass, rows don't
wait for each other, and a row's steps and tokens do not depend on other rows.

Dream's output at i - 1 predicts position i, so its window starts one column early.

Shapes: B rows, R = B or 2 B with guidance, G rows of a turn (2 G with guidance), T columns,
S columns computed, W block, L layers, K KV heads, E head width, D width.
"""

from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from leapjax.caches.base import Cache, Outcome
from leapjax.caches.turns import take_turn
from leapjax.models import transformer
from leapjax.ops.primitives import take


class Refreshing(Cache):
    """A cache that is exact in a block's first pass and stale in later ones."""

    stores, exact = True, False

    @abstractmethod
    def end(self, rows) -> Any:
        """The end of the columns that a pass recomputes, (B,) int32."""

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
            rows.both(rows.positions(window)),
            rows.both(rows.valid()),
            cache,
            rows.both(start),
            (rows.both(low), rows.both(self.end(rows))),
            program.compute_dtype,
        )
        outputs = rows.predictors(columns) - start[:, None]
        return take(hidden, rows.both(outputs))

    def forward(self, params, rows, columns):
        """A full pass for the rows that begin a block, `steady` for the others."""
        state, program = rows.state, rows.program
        begins = ~state.done & (state.block_step == 0)
        moving = ~state.done & (state.block_step > 0)
        b, w = columns.shape
        blank = jnp.zeros(
            (2 * b if program.guidance else b, w, program.model.d_model), program.compute_dtype
        )
        hidden = lax.cond(
            jnp.any(moving),
            lambda: self.steady(params, rows, columns, state.cache),
            lambda: blank,
        )
        group, cache = min(program.refresh_group, b), state.cache
        hidden, cache, refreshed = _refresh(params, rows, columns, begins, group, hidden, cache)
        return Outcome(hidden, ~state.done, begins, cache, refreshed=refreshed)


def lead(program) -> int:
    """How many columns before the block the window starts: 1 if outputs are shifted, else 0."""
    return 1 if program.model.shift_logits else 0


def _refresh(params, rows, columns, waiting, group: int, hidden, cache):
    """Run full passes over the waiting rows, `group` rows a turn.

    Returns `hidden` (R, W, D) and the cache, both updated in the waiting rows, and the number of
    rows computed, () int32.
    """
    b, program = columns.shape[0], rows.program
    all_columns = jnp.arange(program.length, dtype=jnp.int32)[None, :]
    ids = rows.ids()
    positions = rows.both(rows.positions(all_columns))
    valid, outputs = rows.both(rows.valid()), rows.both(rows.predictors(columns))

    @jax.named_scope("refresh pass")
    def turn(carry):
        hidden, cache, waiting, computed = carry
        chosen, after = take_turn(waiting, group)
        waits = waiting[chosen]
        if program.guidance:  # the unconditional branch of row i is row b + i
            chosen, waits = jnp.concatenate([chosen, chosen + b]), jnp.concatenate([waits, waits])
        # Every chosen row waits, but XLA can't know that. If the ids did not depend on the carry,
        # as with one slot, XLA's loop-invariant code motion would hoist the pass, and it would
        # run in every step.
        own = jnp.where(waits[:, None], ids[chosen], 0)
        fresh, cache = transformer.refresh_states(
            params,
            program.model,
            own,
            positions[chosen],
            valid[chosen],
            cache,
            chosen,
            program.compute_dtype,
            outputs[chosen],
        )
        for i in range(chosen.shape[0]):
            hidden = lax.dynamic_update_index_in_dim(hidden, fresh[i], chosen[i], 0)
        return hidden, cache, after, computed + group

    carry = (hidden, cache, waiting, jnp.int32(0))
    hidden, cache, _, computed = lax.while_loop(lambda carry: jnp.any(carry[2]), turn, carry)
    return hidden, cache, computed
