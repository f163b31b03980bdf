"""No cache: every pass computes every column; only the window goes to the head."""

import jax
import jax.numpy as jnp

from leapjax.caches.base import Cache, Outcome
from leapjax.models.attention_states import attention_states
from leapjax.models.network import network, rechecker
from leapjax.ops.primitives import take
from leapjax.types import ATTENTION, WHOLE_ROW, Attention


class NoCache(Cache):
    """Recompute everything."""

    name, help = "none", "every position"
    stores, exact = False, True

    def columns(self, program):
        """All columns."""
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
        needs, more = rows.program.policy.needs, {}
        if "recheck" in needs:
            hidden, more["shadow"] = _forward_with_shadow(params, rows, columns)
        elif needs & WHOLE_ROW:
            hidden, more["whole"], more["attention"] = _whole_rows(params, rows, columns)
        else:
            hidden = self.steady(params, rows, columns, None)
        state, live = rows.state, ~rows.state.done
        if not rows.program.model.seeds_blocks:
            return Outcome(hidden, live, live, None, **more)
        # A pass of its own for the first token of a block, as with a cache.
        seeds = state.stored < state.block
        stored = jnp.where(seeds, state.block, state.stored)
        served = live & ~seeds
        return Outcome(hidden, served, served, None, stored=stored, **more)


@jax.named_scope("full pass")
def _whole_rows(params, rows, columns):
    """Hidden states of the windows (R, W, D), of all columns (R, T, D), and the attention."""
    program, attention = rows.program, None
    column = jnp.arange(program.length, dtype=jnp.int32)[None, :]
    places, valid = rows.both(rows.positions(column)), rows.both(rows.valid())
    inputs = params, program.model, rows.ids(), places, valid
    if program.policy.needs & ATTENTION:
        received = "received" in program.policy.needs
        whole, found = attention_states(*inputs, columns, received, program.compute_dtype)
        attention = Attention(*found)
    else:
        whole = network(program.model).hidden_states(*inputs, program.compute_dtype)
    return take(whole, rows.both(rows.predictors(columns))), whole, attention


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
