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

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from leapjax.decoding import Program, program_for
from leapjax.errors import UserError
from leapjax.failures import out_of_memory
from leapjax.lane import Lane, lower_run, needed_bytes
from leapjax.models.config import ModelConfig
from leapjax.progress import busy, note
from leapjax.sharding import Placement
from leapjax.types import COMMIT_KINDS, Completion, Request

CHUNK = 64  # passes between two looks of the host
_BUCKETS = (32, 64, 96)  # then 128, 192, 256, 384, 512, … two per octave


def bucket(length: int) -> int:
    """Columns reserved for a prompt of this many tokens.

    Args:
      length: tokens, at least 0.

    Returns:
      The smallest bucket that holds it.
    """
    for size in _BUCKETS:
        if length <= size:
            return size
    size = 128
    while length > size:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


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
      begun: finished part of the rows in the slots, in rows; for the time left.
    """

    finished: int = 0
    running: int = 0
    slots: int = 0
    passes: int = 0
    row_steps: int = 0
    device_s: float = 0.0
    begun: float = 0.0
    lane_passes: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Replica:
    """One copy of the model.

    Attributes:
      params: its pytree, on its devices.
      placement: those devices; None is the default device.
    """

    params: Any
    placement: Placement | None = None


class Engine:
    """Decodes requests with one or more replicas of a model.

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
      look_ahead: requests read beyond the oldest unanswered one; at least all slots.
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
        self.fixed = fixed
        default = default_refresh_group(slots)
        self.refresh_group = default if refresh_group is None else refresh_group
        in_all = slots * len(self.replicas)
        self.look_ahead = max(look_ahead or 8 * in_all, in_all)
        self.progress = Progress(slots=in_all, lane_passes=[0] * len(self.replicas))
        self._finish = finish
        self._compiled: dict[tuple[int, Program], tuple[int, Future]] = {}

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
            refresh_group=0 if request.config.cache == "none" else self.refresh_group,
        )

    def stream(
        self,
        requests: Iterable[Request],
        each_chunk: Callable[[Progress], None] | None = None,
    ) -> Iterator[Completion]:
        """Decode requests; lazily read, answered in input order.

        Args:
          requests: consumed at most `look_ahead` beyond the oldest unanswered one.
          each_chunk: called once a chunk, while the device works; may raise to end the
            stream there.

        Yields:
          One Completion per request.
        """
        source = enumerate(requests)
        queues: dict[Program, collections.deque] = collections.defaultdict(collections.deque)
        # Of this stream alone, so streams don't meet: a replica's lanes, and the one at work.
        lanes: list[dict[Program, Lane]] = [{} for _ in self.replicas]
        at_work: list[Lane | None] = [None] * len(self.replicas)
        waiting: dict[int, Program] = {}  # every ticket not yet answered
        ready: dict[int, Completion] = {}
        emitted = 0
        exhausted = False
        while True:
            while not exhausted and len(waiting) + len(ready) < self.look_ahead:
                item = next(source, None)
                if item is None:
                    exhausted = True
                    break
                ticket, request = item
                program = self.program(request)
                queues[program].append((ticket, request))
                waiting[ticket] = program
            if not waiting:
                yield from self._in_order(ready, emitted)
                return
            idle = [i for i, lane in enumerate(at_work) if lane is None or not lane.busy]
            for place, index in enumerate(idle):
                at_work[index] = self._begin(idle[place:], lanes[index], queues, waiting, exhausted)
            # While the devices work, the caller handles what is ready.
            for answer in self._in_order(ready, emitted):
                emitted += 1
                yield answer
            working = [(i, x) for i, x in enumerate(at_work) if x is not None and x.busy]
            self.progress.slots = sum(lane.slots for _, lane in working)
            self.progress.running = self.progress.slots - sum(len(x.free) for _, x in working)
            if each_chunk is not None:
                each_chunk(self.progress)
            for index, lane in _finished(working):
                passes, device_s = lane.passes, lane.device_s
                for (ticket, request), arrays in lane.collect():
                    ready[ticket] = completion(request, arrays, lane.program, self._finish)
                    del waiting[ticket]
                    self.progress.finished += 1
                    self.progress.row_steps += ready[ticket].steps
                self.progress.passes += lane.passes - passes
                self.progress.lane_passes[index] += lane.passes - passes
                self.progress.device_s += lane.device_s - device_s
            self.progress.begun = sum(lane.begun for _, lane in working)

    def _begin(
        self,
        idle: Sequence[int],
        lanes: dict[Program, Lane],
        queues: dict[Program, collections.deque],
        waiting: dict[int, Program],
        exhausted: bool,
    ) -> Lane | None:
        """Seat rows on an idle replica and begin a chunk.

        Args:
          idle: the replica, and those that have their turn after it.
          lanes: its lanes so far.
          queues: requests that wait for a slot, by program.
          waiting: program of every ticket without an answer.
          exhausted: no request will come.

        Returns:
          The lane at work, or None if there is nothing to do here.
        """
        # The lane of the oldest request runs until it has to make room for others; where
        # nothing of it is left to do, those that follow.
        for program in dict.fromkeys(waiting[ticket] for ticket in sorted(waiting)):
            lane, queue = lanes.get(program), queues[program]
            if not queue and (lane is None or len(lane.free) == lane.slots):
                continue
            if lane is None:
                # So many of the idle will have rows of this program.
                lane = lanes[program] = self._lane(idle[: len(queue)], program)
            # Few requests are shared out among the idle; many fill every slot.
            most = -(-len(queue) // len(idle))
            seated = [queue.popleft() for _ in range(min(most, len(lane.free)))]
            lane.put([(entry, entry[1]) for entry in seated])
            # With a queue, come back for a refill as soon as a share of the slots is free.
            share = max(1, lane.slots // 16) if queue or not exhausted else lane.slots
            lane.start(CHUNK, len(lane.free) + share)
            return lane
        return None

    def _in_order(self, ready: dict[int, Completion], emitted: int) -> Iterator[Completion]:
        while emitted in ready:
            yield ready.pop(emitted)
            emitted += 1

    def _lane(self, users: Sequence[int], program: Program) -> Lane:
        """New slots for a program on the first of some replicas; compiled at its first use."""
        replica = self.replicas[users[0]]
        if (users[0], program) not in self._compiled:
            missing = [i for i in users if (i, program) not in self._compiled]
            what, most = "prompts", program.length - program.gen_length
            if program.infill:
                what, most = "sequences", program.length
            with busy(f"compiling for {what} up to {most} tokens"):
                self._compile(missing, program)
        slots, executable = self._compiled[users[0], program]
        return Lane(replica.params, program, slots, executable.result(), replica.placement)

    def _compile(self, users: Sequence[int], program: Program) -> None:
        """Compile a program for some replicas at once, and wait for the first's.

        An executable knows its devices, so each replica has its own.
        """
        slots, why = self.slots, ""
        while True:
            replicas = [self.replicas[i] for i in users]
            lowered = (lower_run(r.params, program, slots, r.placement) for r in replicas)
            made = _compiling(lowered, len(users))
            try:
                needed = needed_bytes(made[0].result())
            except jax.errors.JaxRuntimeError as e:  # a TPU's compiler refuses what doesn't fit
                if not out_of_memory(e):
                    raise
                if self.fixed or slots == 1:
                    raise UserError(_too_large(slots, self.fixed, e)) from e
                why = f"the compiler finds no room for {slots}"
            else:
                if self.fixed or slots == 1 or needed <= memory_limit():
                    break
                why = f"{slots} need {needed / 1e9:.1f} GB of {memory_limit() / 1e9:.1f} GB"
            slots //= 2  # the replicas are alike: what the others compile is of no use
        if why:
            note(f"decoding {slots} row{'s' * (slots != 1)} at once, not {self.slots}: {why}")
        self._compiled |= {(i, program): (slots, one) for i, one in zip(users, made, strict=True)}


def completion(
    request: Request,
    row: dict[str, np.ndarray],
    program: Program,
    finish: Callable[[Request, list[int]], tuple[str, str]],
) -> Completion:
    """What came out for a request.

    Args:
      request: what was asked.
      row: arrays of its finished row, by name of the `DecodeState`'s field.
      program: it was decoded with.
      finish: see `Engine`.
    """
    start = int(row["first"]) if request.infill else program.length - program.gen_length
    ids = row["tokens"][start:].tolist()
    text, reason = finish(request, ids)
    steps = int(row["steps"])
    return Completion(
        id=request.id,
        text=text,
        output_ids=ids,
        finish_reason=reason,
        steps=steps,
        full_passes=int(row["full_passes"]),
        nfe=steps * (2 if program.guidance else 1),
        commit_step=row["commit_step"][start:].tolist(),
        commit_kind=[COMMIT_KINDS[k] for k in row["commit_kind"][start:].tolist()],
        commit_confidence=row["commit_confidence"][start:].tolist(),
        sample=request.sample,
        metadata=request.metadata,
    )


def _too_large(slots: int, fixed: bool, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    rows = f"{slots} row{'s' * (slots != 1)}"
    advice = (
        "choose a smaller --batch-size"
        if fixed and slots > 1
        else ("shorten gen_length or the prompts, quantize, or spread the model over a mesh")
    )
    return f"the device has no memory for {rows} at once; {advice} ({reason})"


def _compiling(lowered: Iterable[Any], count: int) -> list[Future]:
    """Compile lowered programs beside each other: XLA lets go of Python's lock meanwhile.

    Args:
      lowered: made here, one after the other, where the caller's settings of jax apply.
      count: how many.

    Returns:
      One future executable each.
    """
    at_once = min(count, max(2, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="leapjax-compile")
    try:
        return [pool.submit(one.compile) for one in lowered]
    finally:
        pool.shutdown(wait=False)


def _finished(working: list[tuple[int, Lane]]) -> list[tuple[int, Lane]]:
    """The lanes whose chunk is over, once there is one.

    Args:
      working: (replica, lane) pairs with a chunk under way.
    """
    while len(working) > 1:
        if over := [pair for pair in working if pair[1].ready]:
            return over
        time.sleep(0.0005)
    return working  # the only one: collecting it waits


def default_refresh_group(slots: int) -> int:
    """Rows that refresh together by default.

    A quarter of the slots on a CPU: measured best at 16 slots (docs/performance.md). A
    larger group wastes what it does not fill, a smaller one keeps new rows waiting.
    Elsewhere an eighth, at least four, so that small models fill the device; not measured.

    Args:
      slots: of a replica.
    """
    return max(1, slots // 4) if jax.default_backend() == "cpu" else max(4, slots // 8)


def memory_limit() -> int:
    """Bytes that a program may use on one device.

    Returns:
      The allocator's limit where the backend tells it; else nine tenths of the memory
      that the host has in all.
    """
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return device_limit(jax.local_devices()[0]) or int(host * 0.9)


def device_limit(device: Any) -> int | None:
    """Bytes that the allocator of a device gives out; None where it does not say (CPU).

    Args:
      device: one of this process's own; others can't be asked.
    """
    return int((device.memory_stats() or {}).get("bytes_limit", 0)) or None


def slots_for(count: int | None, wanted: int | None, default: int) -> int:
    """Slots to use: what was asked for, else as many as there is work, up to the default.

    Args:
      count: number of requests, None if unknown.
      wanted: the caller's choice, or None.
      default: the most by default.

    Returns:
      A power of two when derived, so that few programs are compiled.
    """
    if wanted is not None:
        return wanted
    if count is None:
        return default
    return min(default, 1 << max(count - 1, 0).bit_length())
