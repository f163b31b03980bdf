"""No cache: every pass computes every column; only the window goes to the head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from leapjax.caches.base import Cache, Outcome
from leapjax.models.network import network, rechecker


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
        return network(program.model).hidden_states(
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
    """Hidden states of the windows (R, W, D), and of their shadows (R, W, D)."""
    program = rows.program
    column = jnp.arange(program.length, dtype=jnp.int32)[None, :]
    return rechecker(program.model).shadowed_states(
        params,
        program.model,
        rows.ids(),
        rows.both(rows.positions(column)),
        rows.both(rows.valid()),
        program.compute_dtype,
        rows.both(columns),
        rows.both(rows.predictors(columns)),
    )
