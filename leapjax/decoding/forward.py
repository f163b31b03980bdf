"""The model's part of a pass: hidden states of each row's window.

Uncached: the whole sequence is computed and the window cut out before the head.
Guided rows are evaluated twice in one batch, the second time with everything that was
given replaced by the mask token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from leapjax.decoding.program import Program
from leapjax.decoding.proposal import guided
from leapjax.decoding.state import DecodeState
from leapjax.decoding.window import predictors
from leapjax.models import transformer
from leapjax.models.layers import take


class Outcome(NamedTuple):
    """What one pass of the model gives.

    Attributes:
      hidden: (B, W, D), with guidance (2 B, W, D); each row's window before the head.
      served: (B,) bool; rows whose window is to be used in this pass.
      full: (B,) bool; rows whose whole sequence was computed.
      cache: the KV cache after the pass, or None.
      shadow: (B, W, V) float32 logits of outputs that don't see the token they predict; None
        unless the policy asks for `recheck`.
    """

    hidden: Any
    served: Any
    full: Any
    cache: Any
    shadow: Any = None


def branches(state: DecodeState, program: Program):
    """Token ids to evaluate: the rows, and with guidance the rows again without prompt.

    Returns:
      (B, T) int32, or (2 B, T) with guidance.
    """
    if not program.guidance:
        return state.tokens
    blind = jnp.where(state.given, jnp.int32(program.model.mask_token_id), state.tokens)
    return jnp.concatenate([state.tokens, blind])


def doubled(x, program: Program):
    """A per-row array, repeated for the unconditional branch where there is one."""
    return jnp.concatenate([x, x]) if program.guidance else x


def window_logits(params, hidden, state: DecodeState, program: Program):
    """Head and guidance: (B or 2 B, W, D) hidden -> (B, W, V) float32 logits."""
    logits = transformer.head(params, program.model, hidden, program.compute_dtype)
    if not program.guidance:
        return logits
    conditional, unconditional = jnp.split(logits, 2)
    return guided(conditional, unconditional, state.options.cfg_scale)


def uncached(params, state: DecodeState, columns, program: Program) -> Outcome:
    """Compute every column of every row.

    Args:
      params: the model's pytree.
      state: B rows.
      columns: (B, W) int32, each row's window.
      program: static structure.
    """
    if "recheck" in program.policy.needs:
        return _shadowed(params, state, columns, program)
    place = jnp.arange(program.length, dtype=jnp.int32)[None, :] - state.first[:, None]
    window = transformer.hidden_states(
        params,
        program.model,
        branches(state, program),
        doubled(jnp.maximum(place, 0), program),
        doubled(place >= 0, program),
        program.compute_dtype,
        outputs=doubled(predictors(columns, state.first, program), program),
    )
    return Outcome(window, ~state.done, ~state.done, None)


def _shadowed(params, state: DecodeState, columns, program: Program) -> Outcome:
    """Compute every column of every row, and a shadow of its window.

    The shadow is the window again, W masks behind the T columns at the positions of the
    outputs that predict it. It sees itself and all of the row but, each, the token it
    predicts; the row doesn't see it, so its own outputs are as without.
    """
    t, w = program.length, program.block_length
    source = predictors(columns, state.first, program)
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
    ids = branches(state, program)
    masks = jnp.full((ids.shape[0], w), program.model.mask_token_id, ids.dtype)
    hidden = transformer.hidden_states(
        params,
        program.model,
        jnp.concatenate([ids, masks], axis=1),
        doubled(jnp.maximum(places, 0), program),
        doubled(seen, program),
        program.compute_dtype,
    )
    window = take(hidden, doubled(source, program))
    shadow = window_logits(params, hidden[:, t:], state, program)
    return Outcome(window, ~state.done, ~state.done, None, shadow)
