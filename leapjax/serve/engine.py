"""The engine: a stream of requests through a few compiled lanes, answers in input order.

    requests -> (look-ahead window) -> queue per program -> lanes' slots -> completions
                                            ^ refilled as rows finish, no recompilation

With several replicas of the model each has a lane of its own, refilled when its own rows
finish: a slow row holds up nobody elsewhere.

Requests that need the same compiled structure share a lane; prompt lengths are rounded up
to buckets, so lanes are few. A request's bucket depends on the request and the options
only, never on its neighbours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from leapjax.decoding import Program, program_for
from leapjax.models.config import ModelConfig
from leapjax.serve.completion import completion
from leapjax.serve.executables import Executables
from leapjax.serve.lane import Lane, Replica, finished
from leapjax.serve.memory import memory_limit, together
from leapjax.serve.scheduler import Scheduler
from leapjax.serve.sizes import bucket, default_refresh_group
from leapjax.serve.stream import answers
from leapjax.types import Completion, Request

CHUNK = 64  # passes between two looks of the host
_SOON = 8  # the same where slots are free and requests may come


@dataclasses.dataclass
class Progress:
    """Counts of a running stream, for progress bars and summaries.

    Attributes:
      finished: requests that are done.
      running: slots in use.
      slots: slots of the lanes that run.
      passes: iterations of the loop, over all lanes.
      lane_passes: the same by replica.
      row_steps: steps of finished rows, summed.
      device_s: seconds in which a chunk was under way on the device.
      rows_in_flight_done: finished part of the rows in the slots, in rows; for the time left.
    """

    finished: int = 0
    running: int = 0
    slots: int = 0
    passes: int = 0
    row_steps: int = 0
    device_s: float = 0.0
    rows_in_flight_done: float = 0.0
    lane_passes: list[int] = dataclasses.field(default_factory=list)


class Engine:
    """Decodes requests with one or more replicas of a model.

    Feed it with `submit`, `step` and `cancel`; `stream` does that for a source of requests and
    answers in their order. Several threads may use one engine.

    Args:
      replicas: alike but for their devices.
      model: its shape and special ids.
      dtype: compute dtype's name.
      eot_token_id: end-of-turn id, or None.
      finish: `(request, canvas ids) -> (text, finish_reason)`.
      slots: rows that a replica decodes at once, at most.
      fixed: use exactly `slots`; otherwise halve them until the program fits in memory.
      refresh_group: rows that may refresh their KV cache in one iteration; None = the
        backend's default.
      look_ahead: requests of a stream read beyond the oldest unanswered one; at least all slots.

    Attributes:
      seated: (program, request) of the rows in slots, by ticket.
      memory_limit: bytes that weights, states, caches and temporaries may take on one device.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        model: ModelConfig,
        *,
        dtype: str,
        eot_token_id: int | None,
        finish: Callable[[Request, list[int]], tuple[str, str]],
        slots: int,
        fixed: bool = False,
        refresh_group: int | None = None,
        look_ahead: int | None = None,
    ):
        self.replicas = tuple(replicas)
        self.model = model
        self.dtype = dtype
        self.eot_token_id = eot_token_id
        self.slots = slots
        default = default_refresh_group(slots)
        self.refresh_group = default if refresh_group is None else refresh_group
        in_all = slots * len(self.replicas)
        self.look_ahead = max(look_ahead or 8 * in_all, in_all)
        self.progress = Progress(slots=in_all, lane_passes=[0] * len(self.replicas))
        self.memory_limit = memory_limit()
        self._finish = finish
        self._executables = Executables(self.replicas, slots, fixed)
        self._tickets = itertools.count()
        self._scheduler: Scheduler[Program] = Scheduler()
        self._lanes: list[dict[Program, Lane]] = [{} for _ in self.replicas]
        self.seated: dict[int, tuple[Program, Request]] = {}  # rows in slots
        self._mailboxes: dict[int, dict[int, Completion]] = {}  # of streams, by ticket
        self._lock = threading.RLock()

    def program(self, request: Request) -> Program:
        """The compiled structure that a request needs."""
        w = request.config.block_length
        if request.infill:
            length = max(bucket(len(request.ids)), w)
        else:
            length = bucket(len(request.ids)) + request.config.gen_length
        return program_for(
            request.config,
            self.model,
            length=length,
            dtype=self.dtype,
            eot_token_id=self.eot_token_id,
            infill=request.infill,
            refresh_group=self.refresh_group,
        )

    def submit(self, request: Request, mailbox: dict[int, Completion] | None = None) -> int:
        """Queue a request.

        Args:
          request: from `LM.request`.
          mailbox: where the answer goes, by ticket, once it is there; by default `step`
            returns it.

        Returns:
          Its ticket.
        """
        with self._lock:
            ticket = next(self._tickets)
            self._scheduler.add(ticket, self.program(request), request)
            if mailbox is not None:
                self._mailboxes[ticket] = mailbox
            return ticket

    def cancel(self, ticket: int) -> bool:
        """Drop a request, whether it waits or decodes; its slot is free for the next one.

        Args:
          ticket: from `submit`.

        Returns:
          False if it was answered or cancelled before.
        """
        with self._lock:
            self._mailboxes.pop(ticket, None)
            if self._scheduler.cancel(ticket):
                return True
            if self.seated.pop(ticket, None) is None:
                return False
            any(lane.cancel(ticket) for lanes in self._lanes for lane in lanes.values())
            self._close_idle()
            return True

    @property
    def unfinished(self) -> int:
        """Requests that wait or decode."""
        return len(self._scheduler) + len(self.seated)

    def step(self) -> list[tuple[int, Completion]]:
        """Decode for a while: seat what waits, run a chunk of passes, collect finished rows.

        Returns:
          (ticket, completion) of the rows that finished; empty with rows in flight if none did
          within the chunk, and at once if there is nothing to do.
        """
        with self._lock:
            self.begin()
            return self.collect()

    def stream(
        self,
        source: Iterable[Any],
        each_chunk: Callable[[Progress], None] | None = None,
        *,
        prepare: Callable[[Any], Sequence[Request]] = lambda request: (request,),
        threaded: bool | None = None,
    ) -> Iterator[Completion]:
        """Decode what a source gives; lazily read, answered in its order.

        Rows in flight wait for no source: one that is slow, or that waits for an answer before
        it goes on, is read in a thread.

        Args:
          source: requests; at most `look_ahead` are read beyond the oldest unanswered one.
          each_chunk: called once a chunk, while the devices work, and while the source is
            waited for; may raise to end the stream there.
          prepare: the requests of an item, where the source gives something else; called in
            the caller's thread, in the source's order.
          threaded: see `Feed`.

        Yields:
          One Completion per request.
        """
        found = answers(
            self,
            source,
            each_chunk,
            prepare,
            threaded=threaded,
            ordered=True,
            ahead=self.look_ahead,
        )
        with contextlib.closing(found):
            for _, answer in found:
                yield answer

    def as_completed(
        self,
        requests: Sequence[Request],
        each_chunk: Callable[[Progress], None] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Decode requests, answered as they finish: what fills the slots best.

        Args:
          requests: all of them, in any order.
          each_chunk: see `stream`.

        Yields:
          (index in `requests`, Completion) pairs.
        """
        return answers(
            self,
            requests,
            each_chunk,
            lambda request: (request,),
            threaded=False,
            ordered=False,
            ahead=len(requests) + 1,  # so that the end is seen at once
        )

    def begin(self, expecting: bool = True) -> None:
        """The first half of `step`: seat rows on idle replicas and begin their chunks.

        Args:
          expecting: more requests may come soon; otherwise a chunk goes on until its rows end.
        """
        with self._lock:
            idle = [i for i, lanes in enumerate(self._lanes) if not _busy(lanes)]
            for place, index in enumerate(idle):
                with self._kept(index):
                    self._begin_one(index, idle[place:], expecting)
            working = [lane for lanes in self._lanes for lane in _busy(lanes)]
            self.progress.slots = sum(lane.slots for lane in working)
            self.progress.running = sum(len(lane.seated) for lane in working)

    def _begin_one(self, index: int, idle: Sequence[int], expecting: bool) -> None:
        """Let one replica begin a chunk, if there is work for it.

        The program of the oldest request has its turn. Its lane keeps the rows of the others
        company in memory where there is room; otherwise those drain first.
        """
        lanes = self._lanes[index]
        crowded = False  # an older program waits for memory
        for program in self._scheduler.order({p: lane.seated for p, lane in lanes.items()}):
            waiting = self._scheduler.waiting(program)
            lane = lanes.get(program)
            if lane is None:
                lane = None if crowded else self._open(index, idle[:waiting], program)
                if lane is None:
                    crowded = True
                    continue
            # Few requests are shared out among the idle; many fill every slot.
            most = min(-(-waiting // len(idle)), len(lane.free))
            if crowded:  # finish what was begun, after a fair share of rows
                most = min(most, lane.turn)
            entries = self._scheduler.take(program, most)
            lane.turn -= len(entries)
            self.seated |= {ticket: (program, request) for ticket, request in entries}
            lane.put(entries)
            if not lane.seated:
                continue
            # With a queue, come back for a refill as soon as a share of the slots is free.
            more = waiting > len(entries)
            share = max(1, lane.slots // 16) if more or expecting else lane.slots
            # With room for newcomers, look for them soon.
            soon = expecting and not more and bool(lane.free)
            lane.start(_SOON if soon else CHUNK, len(lane.free) + share)
            return

    def collect(self) -> list[tuple[int, Completion]]:
        """The other half: wait until a chunk is over, and take out its finished rows."""
        with self._lock:
            working = [(i, x) for i, lanes in enumerate(self._lanes) for x in _busy(lanes)]
            out = []
            for index, lane in finished(working):
                out += self._collect_one(index, lane)
            in_flight = sum(lane.rows_in_flight_done for _, lane in working)
            self.progress.rows_in_flight_done = in_flight
            self._close_idle()
            return out

    def _collect_one(self, index: int, lane: Lane) -> list[tuple[int, Completion]]:
        passes, device_s = lane.passes, lane.device_s
        with self._kept(index):
            rows = lane.collect()
        self.progress.passes += lane.passes - passes
        self.progress.lane_passes[index] += lane.passes - passes
        self.progress.device_s += lane.device_s - device_s
        out = []
        for ticket, arrays in rows:
            program, request = self.seated.pop(ticket)
            answer = completion(request, arrays, program, self._finish)
            self.progress.finished += 1
            self.progress.row_steps += answer.steps
            mailbox = self._mailboxes.pop(ticket, None)
            if mailbox is None:
                out.append((ticket, answer))
            else:
                mailbox[ticket] = answer
        return out

    def _close_idle(self) -> None:
        """Free the lanes of an engine without work, their caches too."""
        if not self.unfinished:
            for lanes in self._lanes:
                lanes.clear()

    @contextlib.contextmanager
    def _kept(self, index: int) -> Iterator[None]:
        """If a replica's device fails, its rows wait again, from their start."""
        try:
            yield
        except BaseException:
            for lane in self._lanes[index].values():
                for ticket in lane.seated:
                    self._scheduler.restore(ticket, *self.seated.pop(ticket))
            self._lanes[index].clear()
            raise

    def _open(self, index: int, users: Sequence[int], program: Program) -> Lane | None:
        """New slots for a program on a replica, or None if there is no room beside its lanes.

        Args:
          index: the replica.
          users: replicas that will need the program now, this one first; it is compiled for
            them side by side.
          program: static structure.
        """
        lanes = self._lanes[index]
        for other in [p for p, lane in lanes.items() if not lane.seated]:
            del lanes[other]
        made = self._executables.get(program, users, self.memory_limit)
        company = [self._executables.get(other, [index], 0).footprint for other in lanes]
        if company and together([made.footprint, *company]) > self.memory_limit:
            return None
        lanes[program] = made.lane()
        return lanes[program]


def _busy(lanes: dict[Program, Lane]) -> list[Lane]:
    """A replica's lane with a chunk under way, if there is one."""
    return [lane for lane in lanes.values() if lane.busy]
