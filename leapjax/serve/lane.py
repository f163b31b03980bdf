"""One compiled program's slots on the device: refill, run, collect.

A lane owns a DecodeState of B slots. The engine decides which requests go in.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.decoding import DecodeState, Program, initial_state, refill_jit, run, run_jit
from leapjax.decoding.prefill import copy_prefix, prefill, prefills
from leapjax.decoding.state import (
    idle_row,
    prefill_end,
    refill,
    row_arrays,
    stack_rows,
    with_cache,
)
from leapjax.serve.memory import array_bytes
from leapjax.serve.refreshes import Refreshes, refreshes
from leapjax.sharding import Placement, under_mesh
from leapjax.types import Request

# Rows per slot that a lane seats before it drains for a lane that waits for memory.
ROWS_PER_SLOT = 8

# Fields of a finished row that the host reads.
RESULT = (
    "tokens commit_step commit_kind commit_confidence origin end steps full_passes other_passes"
).split()


@dataclasses.dataclass(frozen=True)
class Replica:
    """One copy of the model.

    Attributes:
      params: the weights, canonical or arranged (`leapjax.ops`), on the replica's devices.
      placement: the replica's devices; None is the default device.
    """

    params: Any
    placement: Placement | None = None


def empty_state(program: Program, slots: int, placement: Placement | None = None) -> DecodeState:
    """The state of idle slots with its cache, created on the replica's devices.

    Args:
      program: static structure.
      slots: B.
      placement: the replica's devices; None is the default device.
    """
    return on_devices(initial_state([], program, slots), program, placement)


def on_devices(
    state: DecodeState, program: Program, placement: Placement | None = None
) -> DecodeState:
    """A state on the replica's devices, with an empty cache.

    Args:
      state: from `initial_state`.
      program: static structure.
      placement: the replica's devices; None is the default device.
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

    Args:
      program: static structure.
      slots: B.
      placement: the replica's devices; None is the default device.
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

    Args:
      params: the model's pytree (arrays or their shapes).
      program: static structure.
      slots: B.
      placement: the replica's devices; None is the default device.

    Returns:
      The `jax.stages.Lowered`; its `compile()` takes long.
    """
    state, shardings = abstract_state(program, slots, placement)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    if placement is None:
        return run_jit.lower(params, state, count, count, program=program)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=placement.everywhere())
    # Equal shardings in and out, so that the next chunk can take the state.
    jitted = jax.jit(
        run, static_argnames="program", donate_argnames="state", out_shardings=shardings
    )
    with under_mesh(placement):
        return jitted.lower(params, state, count, count, program=program)


def compile_run(params, program: Program, slots: int, placement: Placement | None = None):
    """Compile a lane's chunk without allocating its state.

    Args:
      params: as in `lower_run`.
      program: static structure.
      slots: B.
      placement: the replica's devices.

    Returns:
      The executable; its `memory_analysis()` gives bytes on one device.
    """
    return lower_run(params, program, slots, placement).compile()


@functools.lru_cache
def _refill(placement: Placement | None, program: Program, slots: int):
    """The jitted refill of a lane."""
    if placement is None:
        return refill_jit
    _, shardings = abstract_state(program, slots, placement)
    return jax.jit(refill, donate_argnames="state", out_shardings=shardings)


@functools.lru_cache
def _prefills(placement: Placement | None, program: Program, slots: int):
    """The jitted prefill of a row, and the jitted copy of another row's prefix."""
    out = (
        {} if placement is None else {"out_shardings": abstract_state(program, slots, placement)[1]}
    )
    static = {"static_argnames": "program", "donate_argnames": "state"}
    return jax.jit(prefill, **static, **out), jax.jit(copy_prefix, **static, **out)


class Lane:
    """B slots that decode one program.

    Args:
      params: the model's pytree, on the device.
      program: static structure.
      slots: B.
      executable: from `compile_run` with the same arguments; None compiles it.
      placement: the replica's devices; None is the default device.
    """

    def __init__(
        self,
        params,
        program: Program,
        slots: int,
        executable=None,
        placement: Placement | None = None,
    ):
        self.program = program
        self.slots = slots
        self.params = params
        self.passes = 0  # iterations of the loop so far
        self.refreshes = Refreshes()  # of these iterations
        self.rows_in_flight_done = 0.0  # finished blocks of unfinished rows, in canvases
        self.device_s = 0.0  # seconds during which a chunk ran
        self.tickets: list[Any] = [None] * slots  # ticket of the row in each slot
        self._run = executable or compile_run(params, program, slots, placement)
        self._refill = _refill(placement, program, slots)
        self._placement = placement
        # By slot: the prompt's columns whose keys and values the cache holds.
        self._held: list[tuple[int, ...]] = [()] * slots
        self._idle = idle_row(program)
        # Rows that may still be seated while another lane waits for memory.
        self.rows_before_drain = ROWS_PER_SLOT * slots
        self._state = empty_state(program, slots, placement)
        self._cancelled: set[int] = set()  # slots of cancelled rows
        self._busy = False

    @property
    def free(self) -> list[int]:
        """Slots without a row."""
        return [i for i, ticket in enumerate(self.tickets) if ticket is None]

    @property
    def seated(self) -> list[Any]:
        """Tickets of the rows in the slots."""
        return [ticket for ticket in self.tickets if ticket is not None]

    def cancel(self, ticket: Any) -> bool:
        """Free a row's slot; the row stops with the next chunk. False if it has no slot here."""
        if ticket not in self.tickets:
            return False
        slot = self.tickets.index(ticket)
        self.tickets[slot] = None
        self._cancelled.add(slot)
        return True

    def put(self, arrivals: list[tuple[Any, Request]]) -> None:
        """Seat requests in free slots.

        Args:
          arrivals: (ticket, request) pairs, at most one per free slot.
        """
        if not arrivals and not self._cancelled:
            return
        rows = [self._idle] * self.slots
        chosen = np.zeros(self.slots, bool)
        chosen[list(self._cancelled)] = True
        self._cancelled.clear()
        seats = list(zip(self.free, arrivals, strict=False))
        for slot, (ticket, request) in seats:
            rows[slot] = row_arrays(request, self.program)
            chosen[slot] = True
            self.tickets[slot] = ticket
        self._state = self._refill(self._state, stack_rows(rows), chosen)
        if prefills(self.program):
            for slot, (_, request) in seats:
                self._prefill(slot, request, rows[slot])

    def _prefill(self, slot: int, request: Request, row: dict[str, Any]) -> None:
        """Store a prompt's whole blocks; those that a slot holds already are copied."""
        w, block = self.program.block_length, row["block"]
        end = int(prefill_end(block, row["open"][block], self.program))
        wanted = request.ids[:end]
        self._held[slot], before = (), self._held[slot]
        if not end:
            return
        source, shared = slot, _common(before, wanted, w)
        for other, held in enumerate(self._held):
            if (length := _common(held, wanted, w)) > shared:
                source, shared = other, length
        prefill_row, copy = _prefills(self._placement, self.program, self.slots)
        with under_mesh(self._placement):
            state, at, program = self._state, np.int32(slot), self.program
            if source != slot:
                state = copy(state, np.int32(source), at, np.int32(shared), program=program)
            self._state = prefill_row(self.params, state, at, np.int32(shared), program=program)
        self._held[slot] = wanted

    def start(self, max_passes: int, until_free: int) -> None:
        """Start a chunk of passes asynchronously.

        Args:
          max_passes: end the chunk after this many passes.
          until_free: end the chunk once this many slots are free or done.
        """
        self._started, self._busy = time.perf_counter(), True
        self._state = self._run(
            self.params,
            self._state,
            np.int32(max_passes),
            np.int32(min(until_free, self.slots)),
        )

    @property
    def busy(self) -> bool:
        """Whether a chunk was started and not yet collected."""
        return self._busy

    @property
    def ready(self) -> bool:
        """Whether the chunk has ended, so that `collect` won't block."""
        return self._busy and self._state.done.is_ready()

    def collect(self) -> list[tuple[Any, dict[str, np.ndarray]]]:
        """Wait for the chunk, take out its finished rows and free their slots.

        Returns:
          (ticket, arrays of the row) pairs.
        """
        done = np.asarray(self._state.done)
        self._busy = False
        self.device_s += time.perf_counter() - self._started
        self.passes = int(self._state.iteration)
        if self.program.kv_cache.refreshes:
            counts = jax.device_get(self._state.counts)
            self.refreshes = refreshes(self.program, self.slots, counts)
        blocks = np.asarray(self._state.block) - np.asarray(self._state.origin)
        self.rows_in_flight_done = (
            float(np.maximum(blocks, 0)[~done].sum()) / self.program.gen_length
        )
        finished = [i for i, t in enumerate(self.tickets) if t is not None and done[i]]
        if not finished:
            return []
        host = {name: np.asarray(getattr(self._state, name)) for name in RESULT}
        out = []
        for slot in finished:
            out.append((self.tickets[slot], {k: v[slot] for k, v in host.items()}))
            self.tickets[slot] = None
        return out


def _common(a: tuple[int, ...], b: tuple[int, ...], block: int) -> int:
    """Columns of the common prefix of two prompts, in whole blocks.

    >>> _common((1, 2, 3, 4, 5), (1, 2, 3, 4, 6), 2), _common((), (1,), 2)
    (4, 0)
    """
    count = 0
    while count < min(len(a), len(b)) and a[count : count + block] == b[count : count + block]:
        count += block
    return min(count, len(a), len(b)) // block * block


def finished(working: list[tuple[int, Lane]]) -> list[tuple[int, Lane]]:
    """Wait until a chunk has ended; return the lanes whose chunks have.

    Args:
      working: (replica, lane) pairs that run a chunk.
    """
    while len(working) > 1:
        if over := [pair for pair in working if pair[1].ready]:
            return over
        time.sleep(0.0005)
    return working  # at most one lane: `collect` waits for it
