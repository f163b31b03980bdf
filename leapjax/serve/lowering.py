"""A lane's state on its devices, and the compiled programs that it runs.

They are the chunk of passes (`lower_run`), the prefill of a row (`lower_prefill`), refills, and
copies of prefixes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from leapjax.decoding import DecodeState, Program, initial_state, refill_jit, run, run_jit
from leapjax.decoding.prefill import prefill, prefills, read_piece, write_piece
from leapjax.decoding.state import refill, with_cache
from leapjax.serve.memory import array_bytes
from leapjax.sharding import Placement, under_mesh

_OF_STATE: dict[str, Any] = {"static_argnames": "program", "donate_argnames": "state"}
_prefill_jit = jax.jit(prefill, **_OF_STATE)
read_piece_jit = jax.jit(read_piece, static_argnames="program")


def empty_state(program: Program, slots: int, placement: Placement | None = None) -> DecodeState:
    """The state of idle slots with its cache, created on the replica's devices.

    `placement`: the replica's devices; None is the default device.
    """
    return on_devices(initial_state([], program, slots), program, placement)


def on_devices(
    state: DecodeState, program: Program, placement: Placement | None = None
) -> DecodeState:
    """A state on the replica's devices, with an empty cache.

    `placement`: the replica's devices; None is the default device.
    """
    if placement is None:
        state = jax.tree.map(jnp.asarray, state)
    else:
        state = jax.device_put(state, placement.state(state, program.model))
    return with_cache(state, program, placement and placement.cache)


def abstract_state(
    program: Program, slots: int, placement: Placement | None = None
) -> tuple[DecodeState, Any]:
    """Shapes of a lane's state, and their shardings (None without a placement).

    `placement`: the replica's devices; None is the default device.
    """
    state = jax.eval_shape(lambda: empty_state(program, slots))
    if placement is None:
        return state, None
    shardings = placement.state(state, program.model)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
    return state, shardings


def state_bytes(program: Program, slots: int, placement: Placement | None = None) -> int:
    """Bytes of a lane's state and cache on one device."""
    return array_bytes(*abstract_state(program, slots, placement))


def lower_run(params, program: Program, slots: int, placement: Placement | None = None):
    """Trace and lower a lane's chunk without allocating its state.

    `params`: the model's pytree (arrays or their shapes); `placement`: the replica's devices; None
    is the default device.
    """
    return _lower(run, run_jit, params, program, slots, placement)


def lower_prefill(params, program: Program, slots: int, placement: Placement | None = None):
    """The same of the prefill of a row; None if the program has none."""
    if not prefills(program):
        return None
    return _lower(prefill, _prefill_jit, params, program, slots, placement)


def _lower(function, jitted, params, program: Program, slots: int, placement: Placement | None):
    state, shardings = abstract_state(program, slots, placement)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    if placement is None:
        return jitted.lower(params, state, number, number, program=program)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=placement.everywhere())
    # Equal shardings in and out, so that the next call can take the state.
    jitted = jax.jit(function, **_OF_STATE, out_shardings=shardings)
    with under_mesh(placement):
        return jitted.lower(params, state, number, number, program=program)


def compile_run(params, program: Program, slots: int, placement: Placement | None = None):
    """Compile a lane's chunk without allocating its state.

    Returns the executable; its `memory_analysis()` gives bytes on one device.
    """
    return lower_run(params, program, slots, placement).compile()


def compile_all(params, program: Program, slots: int, placement: Placement | None = None):
    """Compile all that a lane runs: the chunk, and the prefill if there is one."""
    lowered = (lower(params, program, slots, placement) for lower in (lower_run, lower_prefill))
    return [one.compile() for one in lowered if one is not None]


@functools.lru_cache
def refill_of(placement: Placement | None, program: Program, slots: int):
    """The jitted refill of a lane."""
    if placement is None:
        return refill_jit
    _, shardings = abstract_state(program, slots, placement)
    return jax.jit(refill, donate_argnames="state", out_shardings=shardings)


@functools.lru_cache
def write_piece_of(placement: Placement | None, program: Program, slots: int):
    """The jitted `write_piece` of a lane."""
    if placement is None:
        return jax.jit(write_piece, **_OF_STATE)
    _, shardings = abstract_state(program, slots, placement)
    return jax.jit(write_piece, **_OF_STATE, out_shardings=shardings)
