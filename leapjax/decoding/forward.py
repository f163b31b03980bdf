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
from leapjax.decoding.window import predictors, take
from leapjax.models import transformer


class Outcome(NamedTuple):
    """What one pass of the model gives.

    Attributes:
      hidden: (B, W, D), with guidance (2 B, W, D); each row's window before the head.
      served: (B,) bool; rows whose window is to be used in this pass.
      full: (B,) bool; rows whose whole sequence was computed.
      cache: the KV cache after the pass, or None.
    """

    hidden: Any
    served: Any
    full: Any
    cache: Any


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
    place = jnp.arange(program.length, dtype=jnp.int32)[None, :] - state.first[:, None]
    hidden = transformer.hidden_states(
        params,
        program.model,
        branches(state, program),
        doubled(jnp.maximum(place, 0), program),
        doubled(place >= 0, program),
        program.compute_dtype,
    )
    source = predictors(columns, state.first, program)
    window = take(hidden, doubled(source, program))
    return Outcome(window, ~state.done, ~state.done, None)
