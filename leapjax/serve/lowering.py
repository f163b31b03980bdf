"""A lane's state on its devices, and the compiled programs that it runs.

They are the chunk of passes (`lower_run`), the prefill of a row (`lower_prefill`), and what a lane
runs between passes (`between_passes`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.decoding import DecodeState, Program, initial_state, refill_jit, run, run_jit
from leapjax.decoding.prefill import prefill, prefills, read_piece, write_piece
from leapjax.decoding.state import idle_row, refill, stack_rows, with_cache
from leapjax.serve.memory import array_bytes
from leapjax.sharding import Placement, under_mesh

_OF_STATE: dict[str, Any] = {"static_argnames": "program", "donate_argnames": "state"}
_prefill_jit = jax.jit(prefill, **_OF_STATE)
PASSES = ("run", "prefill")  # the names of programs that evaluate the model
_read_piece_jit = jax.jit(read_piece, static_argnames="program")
_write_piece_jit = jax.jit(write_piece, **_OF_STATE)


def empty_state(
    program: Program,
    slots: int,
    placement: Placement | None = None,
    cache: Callable[[], Any] | None = None,
) -> DecodeState:
    """The state of idle slots with its cache, created on the replica's devices.

    `placement`: the replica's devices; None is the default device. `cache` makes the empty cache;
    the default is that of `between_passes`.
    """
    state = initial_state([], program, slots)
    return on_devices(state, program, placement, cache)


def on_devices(
    state: DecodeState,
    program: Program,
    placement: Placement | None = None,
    cache: Callable[[], Any] | None = None,
) -> DecodeState:
    """A state on the replica's devices, with an empty cache.

    `placement`: the replica's devices; None is the default device.
    """
    # `jnp.asarray` would compile a program for each shape.
    state = jax.device_put(state, placement and placement.state(state, program.model))
    if cache is not None:
        return state.replace(cache=cache())
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


def compile_all(
    params, program: Program, slots: int, placement: Placement | None = None
) -> dict[str, jax.stages.Compiled]:
    """Compile the passes of a lane, by name: `run`, the chunk, and `prefill` if there is one."""
    lowered = lower_passes(params, program, slots, placement)
    return {name: one.compile() for name, one in lowered.items()}


def lower_passes(
    params, program: Program, slots: int, placement: Placement | None = None
) -> dict[str, jax.stages.Lowered]:
    """What `compile_all` compiles."""
    made = {"run": lower_run(params, program, slots, placement)}
    if (prefill := lower_prefill(params, program, slots, placement)) is not None:
        made["prefill"] = prefill
    return made


@functools.lru_cache
def between_passes(
    program: Program, slots: int, placement: Placement | None = None
) -> dict[str, Callable[..., Any]]:
    """What a lane runs between passes, by name, compiled when it is first called.

    cache    ()                          -> the state's empty cache
    refill   (state, rows, chosen)       -> state
    read     (cache, row, start)         -> piece of a prompt's keys and values
    write    (state, piece, row, start)  -> state

    `read` and `write` copy prefixes, so only programs with a prefill have them.
    """
    cache = functools.partial(program.kv_cache.init, program, slots)
    if placement is None:
        made: dict[str, Callable[..., Any]] = {"cache": cache, "refill": refill_jit}
        read, write = _read_piece_jit, _write_piece_jit
    else:
        _, state = abstract_state(program, slots, placement)
        made = {"cache": functools.partial(cache, placement.cache)}
        made["refill"] = jax.jit(refill, donate_argnames="state", out_shardings=state)
        piece = _piece_shardings(program.kv_cache.shapes(program, slots), placement)
        read = jax.jit(read_piece, static_argnames="program", out_shardings=piece)
        write = jax.jit(write_piece, **_OF_STATE, out_shardings=state)
    if prefills(program):
        made["read"] = functools.partial(read, program=program)
        made["write"] = functools.partial(write, program=program)
    return made


def lower_between(
    program: Program, slots: int, placement: Placement | None = None
) -> dict[str, jax.stages.Lowered]:
    """`between_passes`, lowered without allocating anything."""
    made = between_passes(program, slots, placement)
    state, _ = abstract_state(program, slots, placement)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    rows, chosen = stack_rows([idle_row(program)] * slots), np.zeros(slots, bool)
    out = {"refill": made["refill"].lower(state, rows, chosen)}
    if state.cache is not None:
        shardings = placement and tuple(x.sharding for x in state.cache)
        out["cache"] = jax.jit(made["cache"], out_shardings=shardings).lower()
    if "read" in made:
        with under_mesh(placement):
            out["read"] = made["read"].func.lower(state.cache, number, number, program=program)
            piece = _piece(program, state.cache, placement)
            out["write"] = made["write"].func.lower(state, piece, number, number, program=program)
    return out


def structures(params, program: Program, slots: int) -> dict[str, tuple[Any, Any]]:
    """What the programs of a lane take and give, by name, as pytree structures (in, out)."""
    state, _ = abstract_state(program, slots)
    rows, row = stack_rows([idle_row(program)]), 0
    inputs = {
        "run": (params, state, row, row),
        "prefill": (params, state, row, row),
        "cache": (),
        "refill": (state, rows, row),
        "read": (state.cache, row, row),
        "write": (state, state.cache, row, row),
    }
    outputs = {"cache": state.cache, "read": state.cache}
    structure = jax.tree.structure
    return {n: (structure((x, {})), structure(outputs.get(n, state))) for n, x in inputs.items()}


def _piece(program: Program, cache, placement: Placement | None):
    """Shapes of what `read` gives; its rows are not split."""
    row = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.eval_shape(functools.partial(read_piece, program=program), cache, row, row)
    if placement is None:
        return shapes
    where = _piece_shardings(shapes, placement)
    return tuple(
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        for x, s in zip(shapes, where, strict=True)
    )


def _piece_shardings(shapes, placement: Placement):
    return tuple(placement.cache((x.shape[0], 1, *x.shape[2:])) for x in shapes)
