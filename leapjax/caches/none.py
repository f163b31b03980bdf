"""No cache: every pass computes every column; only the window goes to the head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from leapjax.caches.base import Cache, Outcome
from leapjax.models import transformer
from leapjax.ops.primitives import take


class NoCache(Cache):
    """Recompute everything."""

    name, help = "none", "every position"
    stores, exact = False, True

    def columns(self, program):
        """All of them."""
        return program.length

    @jax.named_scope("full pass")
    def steady(self, params, rows, columns, cache):
        """One pass over whole sequences; see `Cache.steady`."""
        program = rows.program
        column = jnp.arange(program.length, dtype=jnp.int32)[None, :]
        return transformer.hidden_states(
            params,
            program.model,
            rows.ids(),
            rows.both(rows.positions(column)),
            rows.both(rows.valid()),
            program.compute_dtype,
            outputs=rows.both(rows.predictors(columns)),
        )

    def forward(self, params, rows, columns):
        """Every live row gets a full pass; see `Cache.forward`."""
        if "recheck" in rows.program.policy.needs:
            hidden, shadow = _forward_with_shadow(params, rows, columns)
        else:
            hidden, shadow = self.steady(params, rows, columns, None), None
        state, live = rows.state, ~rows.state.done
        if not rows.program.model.seeds_blocks:
            return Outcome(hidden, live, live, None, shadow)
        # A pass of its own for the first token of a block, as with a cache.
        seeds = state.stored < state.block
        stored = jnp.where(seeds, state.block, state.stored)
        served = live & ~seeds
        return Outcome(hidden, served, served, None, shadow, stored=stored)


@jax.named_scope("full pass")
def _forward_with_shadow(params, rows, columns):
    """Hidden states of the windows (R, W, D), and of their shadows (R, W, D).

    The shadow is a second copy of the window: W masks appended to the T columns, at the positions
    whose outputs predict the window. It attends to itself and to the row, except that each shadow
    column skips the token that it predicts. The row does not attend to the shadow, so the row's
    own outputs do not change.
    """
    state, program = rows.state, rows.program
    t, w = program.length, program.block_length
    source = rows.predictors(columns)
    all_columns = jnp.arange(t, dtype=jnp.int32)[None, :]
    b, real = state.first.shape[0], rows.valid()[:, None, :]
    row_to_row = jnp.broadcast_to(real, (b, t, t))
    row_to_shadow = jnp.zeros((b, t, w), bool)
    shadow_to_row = real & (all_columns[:, None, :] != columns[:, :, None])  # (B, W, T)
    shadow_to_shadow = jnp.ones((b, w, w), bool)
    mask = jnp.concatenate(
        [
            jnp.concatenate([row_to_row, row_to_shadow], axis=2),
            jnp.concatenate([shadow_to_row, shadow_to_shadow], axis=2),
        ],
        axis=1,
    )
    places = jnp.concatenate([rows.positions(all_columns), rows.positions(source)], axis=1)
    ids = rows.ids()
    masks = jnp.full((ids.shape[0], w), program.model.mask_token_id, ids.dtype)
    hidden = transformer.hidden_states(
        params,
        program.model,
        jnp.concatenate([ids, masks], axis=1),
        rows.both(places),
        rows.both(mask),
        program.compute_dtype,
    )
    return take(hidden, rows.both(source)), hidden[:, t:]
