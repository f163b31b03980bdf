"""No cache: every pass computes every column, and cuts the window out before the head."""

from __future__ import annotations

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

    def steady(self, params, rows, columns, cache):
        """One pass over whole sequences; see `Cache.steady`."""
        program = rows.program
        place = jnp.arange(program.length, dtype=jnp.int32)[None, :] - rows.state.first[:, None]
        hidden = transformer.hidden_states(
            params,
            program.model,
            rows.ids(),
            rows.both(jnp.maximum(place, 0)),
            rows.both(place >= 0),
            program.compute_dtype,
            outputs=rows.both(rows.predictors(columns)),
        )
        return hidden, cache

    def forward(self, params, rows, columns):
        """Every live row is served by a full pass; see `Cache.forward`."""
        if "recheck" in rows.program.policy.needs:
            hidden, shadow = _shadowed(params, rows, columns)
        else:
            (hidden, _), shadow = self.steady(params, rows, columns, None), None
        return Outcome(hidden, ~rows.state.done, ~rows.state.done, None, shadow)


def _shadowed(params, rows, columns):
    """Hidden states of the windows (R, W, D), and of their shadows (R, W, D).

    A shadow is the window again: W masks behind the T columns, at the positions of the
    outputs that predict the window. The shadow attends to itself and to the row, but each
    of its columns not to the token that it predicts. The row does not attend to its shadow, so
    its own outputs stay what they are without one.
    """
    state, program = rows.state, rows.program
    t, w = program.length, program.block_length
    source = rows.predictors(columns)
    everything = jnp.arange(t, dtype=jnp.int32)[None, :]
    place = everything - state.first[:, None]
    real = jnp.broadcast_to((place >= 0)[:, None, :], (place.shape[0], t, t))
    lit = (place >= 0)[:, None, :] & (everything[:, None, :] != columns[:, :, None])  # (B, W, T)
    beside = jnp.zeros((place.shape[0], t, w), bool)
    seen = jnp.concatenate(
        [
            jnp.concatenate([real, beside], axis=2),
            jnp.concatenate([lit, jnp.ones((place.shape[0], w, w), bool)], axis=2),
        ],
        axis=1,
    )
    places = jnp.concatenate([place, source - state.first[:, None]], axis=1)
    ids = rows.ids()
    masks = jnp.full((ids.shape[0], w), program.model.mask_token_id, ids.dtype)
    hidden = transformer.hidden_states(
        params,
        program.model,
        jnp.concatenate([ids, masks], axis=1),
        rows.both(jnp.maximum(places, 0)),
        rows.both(seen),
        program.compute_dtype,
    )
    return take(hidden, rows.both(source)), hidden[:, t:]
