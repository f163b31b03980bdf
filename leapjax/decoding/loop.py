"""The decode loop: one `lax.while_loop` over `step`, and the jitted programs around it.

     +------------------------------- while rows live and passes left ----------+
state |-> step: model -> proposal -> policy -> commit -> next block / done -> state' |
     +--------------------------------------------------------------------------+
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from leapjax.decoding.prefill import prefill_all, prefills
from leapjax.decoding.program import Program
from leapjax.decoding.state import DecodeState, refill, with_cache
from leapjax.decoding.step import step

if TYPE_CHECKING:
    from jaxtyping import Array, Int32

    from leapjax.models.transformer import Weights


def run(
    params: Weights,
    state: DecodeState,
    max_passes: Int32[Array, ""],
    free_rows: Int32[Array, ""],
    program: Program,
) -> DecodeState:
    """Repeat `step` until enough rows are done or `max_passes` is reached.

    Args:
      max_passes: () int32; largest number of passes.
      free_rows: () int32; return as soon as this many rows are done. B decodes every row to its
        end; with a smaller number, the caller can refill free slots.
    """
    limit = state.iteration + max_passes

    def unfinished(state):
        free = jnp.sum(state.done, dtype=jnp.int32)
        return (free < free_rows) & ~jnp.all(state.done) & (state.iteration < limit)

    return lax.while_loop(unfinished, lambda s: step(params, s, program), state)


# The compiled programs. The state is donated, so tokens and cache are held only once.
run_jit = functools.partial(jax.jit, static_argnames="program", donate_argnames="state")(run)
refill_jit = functools.partial(jax.jit, donate_argnames="state")(refill)


def decode(params: Weights, state: DecodeState, program: Program) -> DecodeState:
    """Decode every row to its end, in one call; pure and traceable.

    Args:
      state: from `leapjax.decoding.state.initial_state`; if the program needs a KV cache and the
        state has none, an empty one is added.
    """
    if state.cache is None:
        state = with_cache(state, program)
    if prefills(program):
        state = prefill_all(params, state, program)
    rows = jnp.int32(state.done.shape[0])
    return run(params, state, jnp.int32(2**30), rows, program)
