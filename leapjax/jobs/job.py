"""A folder job: an input decoded into shards by one process or several; one is the case N = 1.

    file               written by     when
    lock               process 0      held while it runs (process 3 holds lock-00003)
    journal            process 0      whole, when a run begins and when the job ends
    journal-00003      process 3      an entry at each save and for each complete shard
    shard-00007.open   one process    rows of a shard that is not complete
    part-00007.jsonl   that process   renamed from shard-00007.open, once its journal says so
    errors.jsonl       process 0      whole, when a run begins and when it ends
    summary.json       process 0      when the job has ended

A run:

    process 0   lock ─▶ all journals ─▶ State ─▶ journal              (folder_files.begin)
       │ "begun"
    each        lock-P; input ─▶ Share ─▶ Loop ─▶ Shards ─▶ shard-*.open, journal-P, part-*
       │ "finished"
    process 0   all journals ─▶ State ─▶ errors.jsonl, journal, summary.json

A shard's records and rows are the same whichever process decodes it, so any number of processes
may go on with a job, and its outputs are those of one process that nothing interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from leapjax import storage
from leapjax.arguments import sharing
from leapjax.errors import UserError
from leapjax.jobs import folder_files, journal
from leapjax.jobs.header import describe, differences
from leapjax.jobs.journal import Cut, State
from leapjax.jobs.lock import locked, wait_for_others
from leapjax.jobs.loop import Loop, Progress, Stopped
from leapjax.jobs.names import JOURNAL, LOCK, of_process
from leapjax.jobs.peers import Peers
from leapjax.jobs.shards import Shards
from leapjax.jobs.share import Share
from leapjax.jobs.source import Input, InputInfo
from leapjax.jobs.spec import JobSpec, Result
from leapjax.jobs.summary import Summary
from leapjax.records import Intake
from leapjax.serve.prefills import Prefills
from leapjax.serve.refreshes import Refreshes
from leapjax.storage import Folder

__all__ = ["JobSpec", "Result", "check", "run"]

SHARD_SIZE = 1000
T = TypeVar("T")
VISIBLE = 60.0  # seconds until a network filesystem shows what another host wrote


@contextlib.contextmanager
def _show_nothing(total: int | None) -> Iterator[Callable[[Progress], None]]:
    yield lambda progress: None


def check(spec: JobSpec, peers: Peers | None = None) -> None:
    """Refuse what can be seen to be wrong before a model is loaded.

    Args:
      spec: the job.
      peers: as for `run`.

    Raises:
      UserError: no such input, or an output that is in the way.
    """
    peers = peers or Peers()
    source = Input(spec.input)
    if peers.count > 1:
        check_rereadable(source)
    if peers.index == 0:
        with _one_line(spec):
            folder_files.to_resume(storage.folder(spec.output), spec)


def check_rereadable(source: Input) -> None:
    """Refuse a stream, which only one process can read, and only once.

    Raises:
      UserError: the input is one.
    """
    if source.is_stream:
        raise UserError(
            f"input {source.name}: several processes, or a job that several have worked on, need "
            "a file that each can read; write it to one"
        )


def run(
    lm,
    spec: JobSpec,
    *,
    peers: Peers | None = None,
    show: Callable[[int | None], contextlib.AbstractContextManager] = _show_nothing,
    stop: Callable[[], int | None] = lambda: None,
    note: Callable[[str], None] = lambda line: None,
) -> Result:
    """Decode an input into a folder, from the start or from where it was interrupted.

    Args:
      lm: the model, a `leapjax.LM`.
      spec: the job.
      peers: the processes that share it, all of which call this (`leapjax.jobs.peers`); None is
        this process alone.
      show: given the number of records, if it is known, a context that yields what takes the
        progress (`leapjax.jobs.display.shown`). Only process 0 shows its progress.
      stop: a signal's number once the job shall stop, else None.
      note: takes a line for the user that is no error; called in process 0.

    Returns:
      In process 0 the counts of all processes; in others their own, and no content.

    Raises:
      UserError: see docs/jobs.md; the folder can be resumed unless it was refused.
      Stopped: the job was asked to stop; the folder can be resumed.
      PeerEnded: another process stopped or failed; the folder can be resumed.
    """
    with _one_line(spec), contextlib.ExitStack() as stack:
        return _Run(lm, spec, peers or Peers(), show, stop, note, stack).run()


class _Run:
    """One process's part of a run; see `run`.

    Args:
      stack: holds the locks.
    """

    def __init__(self, lm, spec: JobSpec, peers: Peers, show, stop, note, stack):
        self._lm, self._spec, self._peers = lm, spec, peers
        self._show = show if peers.index == 0 else _show_nothing
        self._stop, self._note, self._stack = stop, note, stack
        self._source, self._folder = Input(spec.input), storage.folder(spec.output)

    def run(self) -> Result:
        first = self._peers.index == 0
        sharing(self._spec.share_prefix, self._lm.config, self._spec.options)
        if self._peers.count > 1:
            check_rereadable(self._source)
        if first:
            folder_files.to_resume(self._folder, self._spec)  # before the folder is touched
            self._folder.create()
            guarded = self._stack.enter_context(locked(self._folder))
            wait_for_others(self._folder)
            self._folder = guarded  # writes only while the lock is held
        info = self._source.scan()
        header = describe(self._lm, self._spec, info)
        state = self._begin(info, header) if first else self._follow(header)
        if state.done:
            ended = first and folder_files.write_summary(self._folder, state, None)
            return ended or Result(Summary(), {}, False)
        if not first:
            own = of_process(LOCK, self._peers.index)
            self._folder = self._stack.enter_context(locked(self._folder, own))
        self._gather("locked")
        share = Share(state, self._peers)
        ends = self._spec.options.for_model(self._lm.config).end_ids
        shards = Shards(self._folder, state, self._peers.index, self._spec, ends)
        with self._closing(shards), self._show(share.total(self._spec.records(info))) as seen:
            summary = self._decode(info, state, share, shards, seen)
        told = self._gather("finished", [shards.written.hexdigest(), dataclasses.asdict(summary)])
        result = Result(summary, {}, True)
        if first:
            result = self._end(state, share.records, told)
        self._gather("ended")
        return result

    def _begin(self, info: InputInfo, header: dict[str, Any]) -> State:
        """Process 0: write what is known of the job, and tell the others."""
        spec, folder = self._spec, self._folder
        found = folder_files.to_resume(folder, spec)  # again: nobody else writes there now
        if found is None:
            size = spec.shard_size or shard_size(spec.records(info), self._peers.count)
            state = State(header | {"shard_size": size}, Cut(0, 0, size))
        else:
            state = found
            folder_files.must_agree(spec, state, header, self._note)
            if spec.shard_size not in (None, state.cut.size) and not state.done:
                if state.has_gaps:
                    raise UserError(
                        f"output {spec.output}: several processes have worked on it with "
                        f"shard_size {state.cut.size}, now {spec.shard_size}; use what it was "
                        "begun with, or start anew with --overwrite"
                    )
                state.resize(spec.shard_size)
        if state.has_gaps:
            check_rereadable(self._source)
        if state.done:
            folder_files.remove_journals(folder)  # if a crash came before that
        else:
            folder_files.begin(folder, state, new=found is None)
        self._gather("begun", [_digest(state.to_bytes()), header, state.done])
        return state

    def _follow(self, header: dict[str, Any]) -> State:
        """The other processes: read what process 0 wrote."""
        digest, of_first, done = self._gather("begun")[0]
        if changes := differences(of_first, header):
            raise UserError(
                f"this process can't join in, because {' and '.join(changes)} (before: process "
                "0); give all the same"
            )
        if done:
            return State(of_first, Cut(0, 0, 1), done=True)
        data = _visible(self._folder, JOURNAL, digest)
        return journal.from_bytes(data, f"{self._folder.path}/{JOURNAL}")

    def _decode(self, info, state: State, share: Share, shards: Shards, seen) -> Summary:
        spec, source = self._spec, self._source

        def stop() -> int | None:
            self._peers.check()
            self._folder.check()
            return self._stop()

        def again() -> Iterator[tuple[int, bytes]]:
            return ((item.line, item.given) for item in Input(spec.input).items())

        intake = Intake(
            spec.options,
            self._lm.config,
            self._lm.codec,
            raw=spec.raw,
            stop=spec.stop,
            samples=spec.num_samples,
            # Another process's record may be bad, and then its id does not count.
            earlier=again if self._peers.count > 1 else None,
        )
        loop = Loop(
            self._lm,
            intake,
            shards,
            max_errors=spec.max_errors,
            errors=state.totals["errors"],
            records=state.totals["records"],
            batch_size=spec.batch_size or state.header["batch_size"],
            share_prefix=spec.share_prefix,
            seen=seen,
            stop=stop,
        )
        items = itertools.islice(source.items(), spec.limit)
        items = share.items(items, intake, stop, source.name)
        summary = loop.run(items)
        if spec.limit is None:
            source.check_unchanged(info)
        shards.finish(share.settled)
        return summary

    def _end(self, state: State, records: int, told: list[Any]) -> Result:
        """Process 0: end the job, once all processes have finished.

        Args:
          state: of the job when the run began.
          records: records of the input.
          told: for each process, the hash of its journal, and its counts.
        """
        spec, folder = self._spec, self._folder
        for index, (digest, _) in enumerate(told):
            name = of_process(JOURNAL, index)
            where = f"{folder.path}/{name}"
            state.take(journal.parse(_visible(folder, name, digest), where), where)
        _until_visible(lambda: folder_files.check_parts(folder, state))
        if state.shards != state.cut.count(records):
            raise UserError(
                f"output {spec.output}: holds {state.shards} shards of "
                f"{state.cut.count(records)}; run the same command with --resume"
            )
        folder_files.check_errors(spec, state)
        folder_files.end(folder, state)
        summary = _sum([counts for _, counts in told])
        return folder_files.write_summary(folder, state, summary, self._peers.count)

    def _gather(self, name: str, value: Any = None) -> list[Any]:
        """The JSON values of all processes (`Peers.gather`); notices signals while it waits."""

        def look() -> None:
            if (number := self._stop()) is not None:
                raise Stopped(number)

        return [json.loads(v) for v in self._peers.gather(name, json.dumps(value), look)]

    @contextlib.contextmanager
    def _closing(self, shards: Shards) -> Iterator[None]:
        """Close the shards at the end; if the work fails, save the settled records first.

        They are not saved after an `OSError`: then the folder itself fails.
        """
        try:
            yield
        except OSError:
            raise
        except Exception:
            with contextlib.suppress(OSError, UserError):
                shards.save()
                if self._peers.index == 0 and (state := journal.read(self._folder)):
                    folder_files.write_errors(self._folder, state)
            raise
        finally:
            shards.close()


def shard_size(records: int | None, count: int) -> int:
    """Records of a shard of a new job.

    Args:
      records: of the input, None if unknown.
      count: processes; they get equal numbers of shards, whose size is near the usual one.

    >>> shard_size(4001, 1), shard_size(4001, 4)
    (1000, 501)
    """
    if records is None or count == 1:
        return SHARD_SIZE
    each = -(-records // (SHARD_SIZE * count)) or 1
    return -(-records // (each * count)) or 1


def _visible(folder: Folder, name: str, digest: str) -> bytes:
    """The content of a file that another process, maybe on another host, has written."""

    def read() -> bytes:
        data = folder.read(name) or b""
        if _digest(data) != digest:
            raise UserError(
                f"output {folder.path}: what another process wrote to {name} is not to be seen; "
                "name a folder that all hosts share"
            )
        return data

    return _until_visible(read)


def _until_visible(look: Callable[[], T]) -> T:
    """The value of `look`, tried for `VISIBLE` seconds while it raises a `UserError`."""
    deadline = time.monotonic() + VISIBLE
    while True:
        try:
            return look()
        except UserError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.5)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sum(summaries: list[dict[str, Any]]) -> Summary:
    """The counts of all processes; they ran at the same time."""
    total = Summary()
    for counts in summaries:
        for name in ("answers", "tokens", "steps", "committed", "edits"):
            setattr(total, name, getattr(total, name) + counts[name])
        total.refreshes += Refreshes(**counts["refreshes"])
        total.prefills += Prefills(**counts["prefills"])
        total.seconds = max(total.seconds, counts["seconds"])
    return total


@contextlib.contextmanager
def _one_line(spec: JobSpec) -> Iterator[None]:
    """Turn failures of the output folder into one line."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"output {spec.output}: can't be written ({e.strerror or e}); what is complete is "
            "kept: mend that and run the same command with --resume"
        ) from e
