"""The model's confidence at every column of a row, not of the window alone.

Shapes: B rows, R = B or 2 B with guidance, T columns, S some of them, D width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from leapjax.decoding import forward, summary
from leapjax.decoding.program import Program
from leapjax.decoding.proposal import propose
from leapjax.decoding.state import DecodeState
from leapjax.ops.primitives import take

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32

    from leapjax.models.transformer import Weights

LOGITS = 2**29  # bytes of float32 logits that are held at a time; each turn reads the head


@jax.named_scope("confidence of whole rows")
def sure(
    params: Weights, hidden: Float[Array, "R T D"], state: DecodeState, program: Program
) -> Float32[Array, "B T"]:
    """The probability of the most probable token of each column, whatever stands there.

    Weights without `head_summary` compute the logits of a few columns at a time. The result is the
    confidence of a proposal at temperature 0, and 0 outside the rows.
    """
    if summary.applies(params, program.greedy):
        found = summary.propose(params, hidden, state.options, program.greedy).confidence
    else:
        found = _in_turns(params, hidden, state, program)
    rows = forward.Rows(state, program)
    columns = jnp.broadcast_to(jnp.arange(program.length, dtype=jnp.int32)[None, :], found.shape)
    return jnp.where(rows.valid(), take(found, rows.predictors(columns)), 0)


def _in_turns(params, hidden, state: DecodeState, program: Program):
    """Confidences (B, T) from whole logits, S columns a turn."""
    b, t = state.tokens.shape
    most = max(program.block_length, LOGITS // (4 * b * program.model.vocab_size))
    turns = -(-t // most)
    size = -(-t // turns)

    def turn(found, index):
        start = jnp.minimum(index * size, t - size)
        part = lax.dynamic_slice_in_dim(hidden, start, size, 1)
        logits = forward.window_logits(params, part, state, program)
        own = propose(logits, state.options, None, None, program.greedy).confidence
        return lax.dynamic_update_slice_in_dim(found, own, start, 1), None

    start = jnp.zeros((b, t), jnp.float32)
    return lax.scan(turn, start, jnp.arange(turns, dtype=jnp.int32))[0]
