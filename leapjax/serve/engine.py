"""The engine: decodes requests in a few compiled lanes.

    requests -> (look-ahead window) -> queue per program -> lanes' slots -> completions
                                            ^ refilled as rows finish, no recompilation

Requests that need the same program share a lane. Prompt lengths are rounded up to buckets, so there
are few lanes. A request's bucket depends only on the request and its options.

Every replica of the model has its own lanes, so a slow row delays no other replica.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from leapjax.decoding import Program, program_for
from leapjax.errors import UserError
from leapjax.failures import out_of_memory
from leapjax.models.config import ModelConfig
from leapjax.ops import hardware
from leapjax.planning.work import sparsity
from leapjax.serve.completion import completion
from leapjax.serve.executables import Executable, Executables
from leapjax.serve.lane import Lane, Replica, finished
from leapjax.serve.memory import memory_limit, together
from leapjax.serve.prefills import PrefillCounter
from leapjax.serve.programs import Programs
from leapjax.serve.progress import Progress
from leapjax.serve.scheduler import Scheduler
from leapjax.serve.sizes import bucket, refill_share
from leapjax.serve.stream import answers
from leapjax.types import Completion, Request

CHUNK = 64  # most passes per chunk; the host collects finished rows after each chunk
_SHORT_CHUNK = 8  # the same while slots are free and more requests may come


class Engine:
    """Decodes requests with one or more replicas of a model.

    `submit`, `step` and `cancel` drive it. `stream` calls them for a source of requests and yields
    the answers in the source's order. Several threads may use one engine.

    Args:
      replicas: copies of the model, equal except for their devices.
      model: the model's shape and special ids.
      eot_token_id: end-of-turn id, or None.
      finish: `(request, canvas ids) -> (text, finish_reason)`.
      slots: largest number of rows that a replica decodes at once.
      fixed: use exactly `slots`; otherwise halve the number until the program fits in memory.
      refresh_group: rows whose KV cache a refresh computes together; None is the backend's
        default for the rows' length.
      share_prefix: rows copy prompt prefixes from slots that hold them, if the program has a
        prefill.
      look_ahead: requests that a stream reads beyond the oldest unanswered one; at least all slots.
      programs: programs that the user compiled earlier; None compiles all.

    Attributes:
      seated: (program, request) of the rows in slots, by ticket.
      memory_limit: bytes on one device for weights, states, caches and temporaries.
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
        share_prefix: bool = True,
        look_ahead: int | None = None,
        programs: Programs | None = None,
    ):
        self.replicas = tuple(replicas)
        self.model = model
        self.dtype = dtype
        self.eot_token_id = eot_token_id
        self.slots = slots
        self._refresh_group = refresh_group
        self._share_prefix, self._prefills = share_prefix, PrefillCounter()
        self._streams = 0  # that are open
        in_all = slots * len(self.replicas)
        self.look_ahead = max(look_ahead or 8 * in_all, in_all)
        self.progress = Progress(slots=in_all, lane_passes=[0] * len(self.replicas))
        self.memory_limit = memory_limit()
        self._finish = finish
        self._executables = Executables(self.replicas, slots, fixed, programs)
        self._tickets = itertools.count()
        self._scheduler: Scheduler[Program] = Scheduler()
        self._lanes: list[dict[Program, Lane]] = [{} for _ in self.replicas]
        self._turn: list[Program | None] = [None] * len(self.replicas)  # what was started last
        self.seated: dict[int, tuple[Program, Request]] = {}  # rows in slots
        self._mailboxes: dict[int, dict[int, Completion]] = {}  # of streams, by ticket
        self._lock = threading.RLock()

    def program(self, request: Request) -> Program:
        """The program that a request needs."""
        config = request.config.for_model(self.model)
        w = config.block_length
        if request.infill:
            length = max(bucket(len(request.ids)), w)
        else:
            length = bucket(len(request.ids)) + config.gen_length
        sparse = sparsity(self.model)
        group = hardware.defaults().refresh_group(length, self.dtype, sparse)
        if self.model.block_causal:
            group = hardware.defaults().storing_group(w, self.dtype, sparse)
        return program_for(
            config,
            self.model,
            length=length,
            dtype=self.dtype,
            eot_token_id=self.eot_token_id,
            infill=request.infill,
            refresh_group=self._refresh_group or group,
        )

    def submit(self, request: Request, mailbox: dict[int, Completion] | None = None) -> int:
        """Queue a request.

        Args:
          mailbox: receives the answer under its ticket; by default `step` returns it.

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
        """Drop a waiting or decoding request and free its slot.

        Returns:
          False if it is already answered or cancelled.
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
        """Number of requests that wait or decode."""
        return len(self._scheduler) + len(self.seated)

    def step(self) -> list[tuple[int, Completion]]:
        """Seat waiting requests, run a chunk of passes, collect finished rows.

        Returns:
          (ticket, completion) of the finished rows; empty if no row finished in the chunk, or if
          there is no work.
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
        """Decode a source of requests, read lazily and answered in its order.

        A source that is not a list is read in a thread, so that a slow source does not delay rows
        in flight.

        Args:
          source: requests; at most `look_ahead` are read beyond the oldest unanswered one.
          each_chunk: called once per chunk while the devices work, and while the stream waits for
            the source; may raise to end the stream.
          prepare: converts an item of the source to requests; called in the caller's thread, in
            the source's order.
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
        """Decode requests and yield answers as they finish, which keeps the slots busiest.

        Args:
          requests: all requests, in any order.
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
        """The first half of `step`: seat rows on idle replicas and start their chunks.

        Args:
          expecting: whether more requests may come soon; if not, chunks run until their rows end.
        """
        with self._lock:
            idle = [i for i, lanes in enumerate(self._lanes) if not _busy(lanes)]
            for place, index in enumerate(idle):
                with self._requeue_on_failure(index):
                    self._begin_one(index, idle[place:], expecting)
            working = [lane for lanes in self._lanes for lane in _busy(lanes)]
            self.progress.slots = sum(lane.slots for lane in working)
            self.progress.running = sum(len(lane.seated) for lane in working)

    def _begin_one(self, index: int, idle: Sequence[int], expecting: bool) -> None:
        """Start a chunk on one replica, if there is work for it.

        The program of the oldest request goes first. If its lane does not fit in memory together
        with the open lanes, those drain first.
        """
        lanes = self._lanes[index]
        crowded = False  # an older program waits for memory
        for program in self._scheduler.order({p: lane.seated for p, lane in lanes.items()}):
            waiting = self._scheduler.waiting(program)
            self._turn[index] = program
            lane = lanes.get(program)
            if lane is None:
                lane = None if crowded else self._open(index, idle[:waiting], program)
                if lane is None:
                    crowded = True
                    continue
            # Spread few requests over the idle replicas; many fill every slot.
            most = min(-(-waiting // len(idle)), len(lane.free))
            if crowded:  # seat a fair share of rows, then drain
                most = min(most, lane.rows_before_drain)
            entries = self._scheduler.take(program, most)
            lane.rows_before_drain -= len(entries)
            self.seated |= {ticket: (program, request) for ticket, request in entries}
            lane.put(entries, lanes.values())
            self.progress.prefills = self._prefills.counts
            if not lane.seated:
                continue
            # With a queue, return for a refill as soon as a share of the slots is free.
            more = waiting > len(entries)
            share = refill_share(lane.slots) if more or expecting else lane.slots
            # With free slots, return soon for new requests.
            soon = expecting and not more and bool(lane.free)
            lane.start(_SHORT_CHUNK if soon else CHUNK, len(lane.free) + share)
            return

    def collect(self) -> list[tuple[int, Completion]]:
        """The second half of `step`: wait for a chunk to end and collect its finished rows."""
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
        passes, device_s, refreshes, rows = lane.passes, lane.device_s, lane.refreshes, []
        with self._requeue_on_failure(index):
            rows = lane.collect()
        self.progress.passes += lane.passes - passes
        self.progress.lane_passes[index] += lane.passes - passes
        self.progress.refreshes += lane.refreshes - refreshes
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
        if endless := lane.endless():
            for ticket in endless:
                self.cancel(ticket)
            raise UserError(
                f"policy {lane.program.policy.name}: no end after {lane.passes} passes; in each "
                "pass a policy must commit a position of every row that has masks (`surest`)"
            )
        return out

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """A context in which more requests may come, so that prefixes are kept."""
        with self._lock:
            self._streams += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams -= 1
                self._close_idle()

    def _close_idle(self) -> None:
        """Free all lanes and their caches if the engine has no work."""
        if self.unfinished:
            return
        for lanes in self._lanes:
            for program in [p for p, lane in lanes.items() if not self._keeps(lane)]:
                del lanes[program]
        if not self._streams:
            self._prefills.forget()

    def _keeps(self, lane: Lane) -> bool:
        """Whether an idle lane is kept for its prefixes while there is memory."""
        return self._streams > 0 and lane.prefixes.worth_keeping[0]

    @contextlib.contextmanager
    def _requeue_on_failure(self, index: int) -> Iterator[None]:
        """If a replica's device fails, requeue its rows; they restart from the beginning.

        If it ran out of memory, the program that had its turn gets half the slots.
        """
        try:
            yield
        except BaseException as e:
            for lane in self._lanes[index].values():
                for ticket in lane.seated:
                    self._scheduler.restore(ticket, *self.seated.pop(ticket))
            self._lanes[index].clear()
            program = self._turn[index]
            if program is None or not out_of_memory(e):
                raise
            self._executables.halve(program, index, e)

    def _open(self, index: int, users: Sequence[int], program: Program) -> Lane | None:
        """Open a lane for a program on a replica; None if it does not fit in memory.

        Idle lanes are closed; those that hold prefixes only if there is no memory for them.

        Args:
          users: replicas that need the program now, this one first; it is compiled for all of
            them in parallel.
        """
        lanes = self._lanes[index]
        made = self._executables.get(program, users, self.memory_limit)
        idle = [p for p, lane in lanes.items() if not lane.seated]
        for other in sorted(idle, key=lambda p: lanes[p].prefixes.worth_keeping):
            if not self._keeps(lanes[other]) or not self._fits(index, made):
                del lanes[other]
        if lanes and not self._fits(index, made):
            return None
        lanes[program] = made.lane(self._share_prefix, self._prefills)
        return lanes[program]

    def _fits(self, index: int, made: Executable) -> bool:
        """Whether a lane fits in memory beside the open ones."""
        others = [self._executables.get(p, [index], 0).footprint for p in self._lanes[index]]
        return together([made.footprint, *others]) <= self.memory_limit


def _busy(lanes: dict[Program, Lane]) -> list[Lane]:
    """The lanes of a replica that run a chunk: at most one."""
    return [lane for lane in lanes.values() if lane.busy]
