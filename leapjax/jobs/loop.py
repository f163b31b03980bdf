"""The loop of every job: records in, answers out in input order.

items ─▶ Intake ─▶ requests ─▶ engine ─▶ sink.write
            └─▶ bad records ──────────────▶ sink.keep_bad, or the job ends
                                            sink.settle after each record
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from leapjax.errors import UserError
from leapjax.jobs.source import Item
from leapjax.jobs.summary import Summary
from leapjax.jsonl import parse_line
from leapjax.records import Intake
from leapjax.types import Completion, Request


class Sink(Protocol):
    """Takes answers and bad records, in input order."""

    def write(self, completion: Completion) -> None:
        """Take the next completion."""
        ...

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Take a bad record's `{line, id, error}`."""
        ...

    def settle(self, item: Item) -> None:
        """Note that everything of this record, and of those before it, has been given."""
        ...


class Stopped(Exception):
    """A signal asked the job to stop, and it did in good order."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number  # of the signal


@dataclasses.dataclass
class Progress:
    """How far a job is."""

    summary: Summary  # of this run
    records: int = 0  # settled records, those of earlier runs and other processes included
    first: int = 0  # settled records of earlier runs
    errors: int = 0  # bad records, those of earlier runs included
    samples: int = 1  # answers per record
    seconds: float = 0.0  # since this run's first chunk began, without loading and compiling
    running: int = 0  # slots in use
    slots: int = 0
    ahead: int = 0  # answers that wait for an earlier one
    rows_in_flight_done: float = 0.0  # finished part of the rows in the slots, in rows


@dataclasses.dataclass
class _Pending:
    """A record in flight; `left` answers are missing."""

    item: Item
    left: int
    bad: dict[str, Any] | None = None


class Loop:
    """Runs over records, one after the other.

    `errors` and `records` were settled by earlier runs; with more than `max_errors` bad records
    the job ends. `count` is the number of requests, so that few requests get few slots; None
    chooses slots without regard to the amount of work, so that a resumed job has the same. If
    `waits`, items may come slowly, or only after answers to earlier ones, and a thread reads them.
    `seen` takes the progress after each answer and chunk; `stop` gives a signal's number once the
    job shall stop.
    """

    def __init__(
        self,
        lm,
        intake: Intake,
        sink: Sink,
        *,
        max_errors: int = 0,
        errors: int = 0,
        records: int = 0,
        batch_size: int | None = None,
        share_prefix: bool | str = "auto",
        count: int | None = None,
        waits: bool = False,
        seen: Callable[[Progress], None] = lambda progress: None,
        stop: Callable[[], int | None] = lambda: None,
    ):
        self._intake, self._sink = intake, sink
        self._max_errors, self._waits = max_errors, waits
        self._engine = lm.engine_for(count, batch_size, share_prefix=share_prefix)
        self._bad = errors  # those found; the progress counts those settled
        self._seen, self._stop = seen, stop
        self._pending: collections.deque[_Pending] = collections.deque()
        self._began: float | None = None
        self._before = dataclasses.replace(self._engine.progress)  # of other streams
        self.progress = Progress(
            Summary(intake.job.end_ids),
            records=records,
            first=records,
            errors=errors,
            samples=intake.samples or 1,
        )

    def run(self, items: Iterable[Item]) -> Summary:
        """Decode records into the sink; gives the counts of all calls so far.

        `items` are read within the engine's look-ahead only. `UserError` for a bad record too
        many, or if the source or sink fails; `Stopped` if the job was asked to stop.
        """
        stream = self._engine.stream(
            items, self._each_chunk, prepare=self._requests, threaded=self._waits
        )
        for completion in stream:
            self.progress.summary.add(completion)
            if self._began is not None:  # the time of the chunk that brought it
                self.progress.seconds = time.perf_counter() - self._began
            self._sink.write(completion)
            self._pending[0].left -= 1
            self._settle()
            self._seen(self.progress)
            self._check_stop()
        return self.tally()

    def tally(self) -> Summary:
        """The counts so far."""
        summary, now = self.progress.summary, self._engine.progress
        summary.refreshes = now.refreshes - self._before.refreshes
        summary.prefills = now.prefills - self._before.prefills
        return summary

    def _requests(self, item: Item) -> Sequence[Request]:
        self._check_stop()
        record = item.given
        try:
            if isinstance(record, bytes):
                record = parse_line(record, item.where)
            made = self._intake.requests(record, item.line, item.where)
        except UserError as e:
            self._pending.append(_Pending(item, 0, self._forgive(e, item, record)))
            self._settle()
            return ()
        self._pending.append(_Pending(item, len(made)))
        return made

    def _forgive(self, error: UserError, item: Item, record: Any) -> dict[str, Any]:
        """The error record of a bad record; raises if there are too many."""
        self._bad += 1
        if self._bad > self._max_errors:
            if not self._max_errors:
                raise error
            raise UserError(
                f"{error} (bad record {self._bad}; --max-errors is {self._max_errors})"
            ) from error
        own = record.get("id") if isinstance(record, dict) else None
        if isinstance(record, dict) and own is None:
            own = item.line
        reason = str(error).removeprefix(f"{item.where}: ")
        return {"line": item.line, "id": own, "error": reason}

    def _settle(self) -> None:
        """Settle the oldest records, as far as their answers have come."""
        while self._pending and not self._pending[0].left:
            record = self._pending.popleft()
            if record.bad is not None:
                self._sink.keep_bad(record.bad)
                self.progress.errors += 1
            self._sink.settle(record.item)
            self.progress.records += 1

    def _each_chunk(self, engine) -> None:
        now, progress = time.perf_counter(), self.progress
        if self._began is None:
            if not engine.running:
                return self._check_stop()  # nothing has come yet
            self._began = now
        progress.seconds = now - self._began
        progress.running, progress.slots = engine.running, engine.slots
        progress.ahead = engine.finished - self._before.finished - progress.summary.answers
        progress.rows_in_flight_done = engine.rows_in_flight_done
        self._seen(self.progress)
        self._check_stop()

    def _check_stop(self) -> None:
        number = self._stop()
        if number is not None:
            raise Stopped(number)
