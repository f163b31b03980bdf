"""A job into a folder: resumable, exact, in constant memory.

`run` decodes an input into shards (leapjax.jobs.shards). What the outputs depend on
stands in the journal's header; a resumed job must agree with it, skips the input lines
that are behind it, and goes on.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs import spread, spread_journal, storage
from leapjax.jobs.header import describe, noise_changed, without_noise
from leapjax.jobs.journal import Journal
from leapjax.jobs.lock import locked, wait_for_others, watched
from leapjax.jobs.loop import Loop, Progress, Stopped
from leapjax.jobs.open_shard import kept
from leapjax.jobs.peers import Peers
from leapjax.jobs.shards import Shards
from leapjax.jobs.source import Input, Item
from leapjax.jobs.spec import JobSpec, Result
from leapjax.jobs.spread_journal import State
from leapjax.jobs.state import ended, must_agree, to_resume
from leapjax.jobs.summary import Summary, counts_of
from leapjax.jsonl import parse_line, to_line
from leapjax.records import Intake, to_record

__all__ = ["JobSpec", "Result", "check", "run"]


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
    source = Input(spec.input)
    if peers is not None:
        spread.check(source)
    if peers is None or peers.index == 0:
        with _one_line(spec):
            to_resume(storage.folder(spec.output), spec)


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
      peers: the processes that share it, all of which call this (`leapjax.jobs.peers`).
      show: given the number of records, if it is known, a context that yields what takes
        the progress (`leapjax.jobs.display.shown`).
      stop: a signal's number once the job shall stop, else None.
      note: takes a line for the user that is no error.

    Returns:
      The counts.

    Raises:
      UserError: see docs/jobs.md; the folder can be resumed unless it was refused.
      Stopped: it was asked to stop; the folder can be resumed.
      PeerEnded: another process was, or failed; the folder can be resumed.
    """
    source, folder = Input(spec.input), storage.folder(spec.output)
    with _one_line(spec):
        # Before the folder is touched; of several processes only the first may look.
        found = to_resume(folder, spec) if peers is None else None
        if peers is not None or isinstance(found, State):
            together = peers or Peers()
            return spread.run(lm, spec, source, folder, together, show=show, stop=stop, note=note)
        folder.create()
        with locked(folder) as guarded:
            wait_for_others(folder)
            folder = guarded  # writes only while the lock is held
            # Again, now that nobody else writes there.
            journal = to_resume(folder, spec)
            if isinstance(journal, State):
                raise UserError(f"output {spec.output}: was changed meanwhile; run it again")
            info = source.scan()
            header = describe(lm, spec, info)
            if journal is None:
                spread_journal.forget(folder)
                journal = Journal.create(folder, header)
            else:
                must_agree(spec, journal, header, note)
            if journal.done:
                return ended(folder, journal, None)
            shards = Shards(
                folder,
                journal,
                shard_size=spec.shard_size or journal.header["shard_size"],
                save_seconds=spec.save_seconds,
            )
            with kept(shards), show(spec.records(info)) as seen:
                stop = watched(folder, stop)
                summary = _decode(lm, spec, source, info, journal, shards, seen, stop)
            return ended(folder, journal, summary)


class ShardSink:
    """Completions into shards.

    Args:
      shards: of the job's folder.
      eos_id: the model's eos token.
      spec: of the job; says what a record holds.
    """

    def __init__(self, shards: Shards, eos_id: int, spec: JobSpec):
        self._shards, self._eos_id, self._spec = shards, eos_id, spec

    def write(self, completion) -> None:
        """Take the next completion."""
        row = to_line(to_record(completion, self._spec.details, self._spec.fields)).encode()
        self._shards.write(row, counts_of(completion, self._eos_id))

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Take a bad record."""
        self._shards.keep_bad(to_line(record).encode())

    def settle(self, item: Item) -> None:
        """All of this record has come."""
        self._shards.settle(item.line, item.chain)


def _decode(lm, spec, source, info, journal, shards, seen, stop) -> Summary:
    intake = Intake(
        spec.options,
        lm.config,
        lm.codec,
        raw=spec.raw,
        stop=spec.stop,
        samples=spec.num_samples,
    )
    loop = Loop(
        lm,
        intake,
        ShardSink(shards, lm.config.eos_token_id, spec),
        max_errors=spec.max_errors,
        errors=journal.errors,
        records=journal.records,
        batch_size=spec.batch_size or journal.header["batch_size"],
        seen=seen,
        stop=stop,
    )
    items: Iterable[Item] = itertools.islice(source.items(), spec.limit)
    if journal.last:
        items = _skip(items, journal.last, shards.bad_lines(), intake, source, stop)
    if noise_changed(journal.header):
        items = without_noise(items, journal.header)
    summary = loop.run(items)
    if spec.limit is None:
        source.check_unchanged(info)
    shards.finish()
    return summary


def _skip(items: Iterable[Item], last, bad: set[int], intake: Intake, source: Input, stop):
    """The items behind `last`; of those before only the ids are taken in."""
    items = iter(items)
    for item in items:
        if item.line not in bad:
            intake.remember(parse_line(item.given, item.where), item.line)
        if item.line >= last.last_line:
            if (item.line, item.chain) == (last.last_line, last.chain):
                return items
            break
        if (number := stop()) is not None:
            raise Stopped(number)
    raise UserError(
        f"input {source.name}: is not the one that the job was begun with (its first "
        f"{last.last_line} lines differ); use that, or start anew with --overwrite"
    )


@contextlib.contextmanager
def _one_line(spec: JobSpec) -> Iterator[None]:
    """Failures of the output folder as one line."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"output {spec.output}: can't be written ({e.strerror or e}); what is complete is "
            "kept: mend that and run the same command with --resume"
        ) from e
