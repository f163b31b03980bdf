"""One compiled program's slots on the device: refill, run, collect.

A lane owns a DecodeState of B slots. The engine decides which requests go in.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from leapjax.decoding import DecodeState, Program
from leapjax.decoding.edits import logged_passes
from leapjax.decoding.prefill import copies, piece_columns, prefills
from leapjax.decoding.state import idle_row, prefill_end, row_arrays, stack_rows
from leapjax.serve.lowering import between_passes, compile_all, empty_state
from leapjax.serve.prefills import PrefillCounter
from leapjax.serve.prefixes import Prefix, Prefixes, prefix_of
from leapjax.serve.refreshes import Refreshes, refreshes
from leapjax.sharding import Placement, under_mesh
from leapjax.types import Request

# Rows per slot that a lane seats before it drains for a lane that waits for memory.
ROWS_PER_SLOT = 8
# A row is taken never to end after this many times the passes of one that commits in each.
_PATIENCE = 16

# Fields of a finished row that the host reads.
RESULT = (
    "tokens commit_step commit_kind commit_confidence edits origin end steps full_passes "
    "other_passes"
).split()


@dataclasses.dataclass(frozen=True)
class Replica:
    """One copy of the model."""

    params: Any  # the weights, canonical or arranged (`leapjax.ops`), on the replica's devices
    placement: Placement | None = None  # the replica's devices; None is the default device


class _Seat(NamedTuple):
    """Where a request is seated, and who holds the beginning of its prompt."""

    slot: int
    wanted: Prefix  # the prompt's whole blocks
    shared: int  # blocks that `source` holds in slot `place`
    source: Lane
    place: int  # its slot


class Lane:
    """B slots that decode one program.

    `params`: the model's pytree, on the device; `executables`: from `compile_all` with the same
    arguments, perhaps with some of `between_passes`; None compiles them; `placement`: the replica's
    devices; None is the default device; `share`: rows get the prefixes of their prompts from slots
    that hold them.
    """

    def __init__(
        self,
        params,
        program: Program,
        slots: int,
        executables: Mapping[str, Callable[..., Any]] | None = None,
        placement: Placement | None = None,
        *,
        share: bool = True,
        counter: PrefillCounter | None = None,
    ):
        self.program = program
        self.slots = slots
        self.params = params
        self.passes = 0  # iterations of the loop so far
        self.refreshes = Refreshes()  # of these iterations
        self.rows_in_flight_done = 0.0  # finished blocks of unfinished rows, in canvases
        self.device_s = 0.0  # seconds during which a chunk ran
        self.tickets: list[Any] = [None] * slots  # ticket of the row in each slot
        executables = executables or compile_all(params, program, slots, placement)
        self._programs = {**between_passes(program, slots, placement), **executables}
        self._placement = placement
        self._share, self._counter = share, counter or PrefillCounter()
        self.prefixes = Prefixes(slots)
        self._idle = idle_row(program)
        # Rows that may still be seated while another lane waits for memory.
        self.rows_before_drain = ROWS_PER_SLOT * slots
        self._state = empty_state(program, slots, placement, self._programs["cache"])
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

    def put(self, arrivals: list[tuple[Any, Request]], lanes: Iterable[Lane] = ()) -> None:
        """Seat requests in free slots.

        `arrivals`: (ticket, request) pairs, at most one per free slot; `lanes`: idle lanes of the
        replica, whose slots may hold prefixes of the prompts.
        """
        if not arrivals and not self._cancelled:
            return
        rows = [self._idle] * self.slots
        chosen = np.zeros(self.slots, bool)
        chosen[list(self._cancelled)] = True
        self._cancelled.clear()
        seats = []
        for ticket, request in arrivals:
            row = row_arrays(request, self.program)
            seats.append(seat := self._seat(request, row, lanes))
            rows[seat.slot], chosen[seat.slot] = row, True
            self.tickets[seat.slot] = ticket
        self._state = self._programs["refill"](self._state, stack_rows(rows), chosen)
        if prefills(self.program):
            for seat in seats:
                self._fill(seat)

    def _seat(self, request: Request, row: dict[str, Any], lanes: Iterable[Lane]) -> _Seat:
        """The place of a request; from now on the slot holds its prompt."""
        w, block = self.program.block_length, row["block"]
        end = int(prefill_end(block, row["open"][block], self.program))
        wanted = prefix_of(request.ids[:end], w) if prefills(self.program) else ()
        shared, place, source = 0, 0, self
        if self._share and wanted:
            for lane in (self, *(lane for lane in lanes if lane is not self)):
                if copies(lane.program) == copies(self.program):
                    blocks, other = lane.prefixes.longest(wanted)
                    if blocks > shared:
                        shared, place, source = blocks, other, lane
            slot = self.prefixes.choose(self.free, wanted)
            if source is self and self.prefixes.holds(slot, wanted, shared):
                place = slot  # nothing to copy
            self.prefixes.fill(slot, wanted, shared)
        else:
            slot = self.free[0]
            self.prefixes.fill(slot, ())
        self._counter.add(wanted, w, shared)
        return _Seat(slot, wanted, shared, source, place)

    def _fill(self, seat: _Seat) -> None:
        """Store a prompt's whole blocks; those that a slot holds already are copied."""
        if not seat.wanted:
            return
        slot, w = np.int32(seat.slot), self.program.block_length
        with under_mesh(self._placement):
            if (seat.source, seat.place) != (self, seat.slot):
                self._copy(seat)
            begin = np.int32(seat.shared * w)
            self._state = self._programs["prefill"](self.params, self._state, slot, begin)

    def _copy(self, seat: _Seat) -> None:
        """Copy what the source holds of a prompt, piece by piece."""
        size, source = piece_columns(self.program), seat.source
        last = min(self.program.length, source.program.length) - size
        for start in range(0, seat.shared * self.program.block_length, size):
            start = np.int32(min(start, last))
            read, write = source._programs["read"], self._programs["write"]
            piece = read(source._state.cache, np.int32(seat.place), start)
            self._state = write(self._state, piece, np.int32(seat.slot), start)

    def start(self, max_passes: int, until_free: int) -> None:
        """Start a chunk of passes asynchronously.

        `max_passes`: end the chunk after this many passes; `until_free`: end the chunk once this
        many slots are free or done.
        """
        self._started, self._busy = time.perf_counter(), True
        self._state = self._programs["run"](
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

    def collect(self) -> list[tuple[Any, dict[str, Any]]]:
        """Wait for the chunk, take out its finished rows and free their slots."""
        done = np.asarray(self._state.done)
        self._busy = False
        self.device_s += time.perf_counter() - self._started
        self.passes = int(self._state.iteration)
        if self.program.kv_cache.refreshes:
            counts = jax.device_get(self._state.counts)
            self.refreshes = refreshes(self.program, self.slots, counts)
        block, origin, end = (
            np.asarray(x)[~done] for x in (self._state.block, self._state.origin, self._state.end)
        )
        self.rows_in_flight_done = float((np.maximum(block - origin, 0) / (end - origin)).sum())
        finished = [i for i, t in enumerate(self.tickets) if t is not None and done[i]]
        if not finished:
            return []
        host, out = result_arrays(self._state), []
        for slot in finished:
            out.append((self.tickets[slot], row_of(host, slot)))
            self.tickets[slot] = None
        return out

    def endless(self) -> list[Any]:
        """Tickets of the rows whose policy seems never to finish them, after a `collect`."""
        over = np.asarray(self._state.steps) > _PATIENCE * logged_passes(self.program)
        return [t for t, late in zip(self.tickets, over, strict=True) if t is not None and late]


def result_arrays(state: DecodeState) -> dict[str, Any]:
    """What the host reads of finished rows, by field: NumPy arrays with a leading B axis."""
    return jax.device_get({name: getattr(state, name) for name in RESULT})


def row_of(host: dict[str, Any], slot: int) -> dict[str, Any]:
    """One row of `result_arrays`."""
    return jax.tree.map(lambda x: x[slot], host)


def finished(working: list[tuple[int, Lane]]) -> list[tuple[int, Lane]]:
    """Wait until a chunk has ended; return the lanes whose chunks have.

    `working`: (replica, lane) pairs that run a chunk.
    """
    while len(working) > 1:
        if over := [pair for pair in working if pair[1].ready]:
            return over
        time.sleep(0.0005)
    return working  # at most one lane: `collect` waits for it
