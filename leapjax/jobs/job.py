"""A folder job: any number of processes, which may come and go, decode an input into shards.

    file                written by         when
    journal             first process      once: the settings; the last act of the job replaces it
    process-…           each process       every few seconds, as long as it runs
    claim-00007.0       a shard's owner    when it claims the shard, and at each save
    shard-00007.0.open  the same           rows of a shard that is not complete
    part-00007.jsonl    the same           renamed from shard-00007.0.open, once the claim says so
    errors.jsonl        one process        when all shards are complete
    summary.json        the same           after that

A process:

    journal, created or agreed with ─▶ Index of the input
      ─▶ claim the first free shard ─▶ Loop ─▶ Shards ─▶ claim, shard-*.open, part-*   (again)
      ─▶ nothing is free: wait until all shards are complete, or a process dies
      ─▶ claim the end, as one more shard ─▶ errors.jsonl, summary.json, journal

The processes know of each other only through these files. A shard's records and rows are the same
in whichever process decodes it, so the outputs are those of one uninterrupted process.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from leapjax import storage
from leapjax.arguments import sharing
from leapjax.errors import UserError
from leapjax.jobs import folder_files
from leapjax.jobs.claims import Claims, Files
from leapjax.jobs.header import describe
from leapjax.jobs.index import Index
from leapjax.jobs.journal import State
from leapjax.jobs.loop import Loop, Progress, Stopped
from leapjax.jobs.members import Members
from leapjax.jobs.names import JOURNAL, part_name
from leapjax.jobs.shards import Shard, Shards
from leapjax.jobs.source import Input, Item
from leapjax.jobs.spec import JobSpec, Result
from leapjax.jobs.summary import Summary
from leapjax.planning import chips
from leapjax.records import Intake
from leapjax.wording import plural

__all__ = ["JobSpec", "Result", "check", "run"]

SHARD_SIZE = 1000
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between looks at what the other processes do
_PATIENCE = 15.0  # seconds of waiting for other processes before a note
_TRIES = 3  # claims of one shard until its rows count as damaged


@contextlib.contextmanager
def _show_nothing(total: int | None) -> Iterator[Callable[[Progress], None]]:
    yield lambda progress: None


def check(spec: JobSpec) -> None:
    """Before a model is loaded, refuse an input or output folder that can't work."""
    Input(spec.input)
    with _one_line(spec):
        folder_files.to_resume(storage.folder(spec.output), spec)


def run(
    lm,
    spec: JobSpec,
    *,
    show: Callable[[int | None], contextlib.AbstractContextManager] = _show_nothing,
    stop: Callable[[], int | None] = lambda: None,
    note: Callable[[str], None] = lambda line: None,
) -> Result:
    """Decode an input into a folder, from the start or from where an earlier run stopped.

    Other processes may call this for the same folder, now or later. Each call returns when the job
    has ended.

    Args:
      lm: the model, a `leapjax.LM`.
      show: takes the number of records and returns a context manager; that yields a function which
        takes the progress (`leapjax.jobs.display.shown`).
      stop: returns a signal's number once this process must stop, else None.
      note: takes a line for the user that is not an error.

    Raises:
      UserError: see docs/jobs.md; the job can be resumed unless the folder was refused.
      Stopped: the process was asked to stop; the job can be resumed.
    """
    with _one_line(spec):
        return _Run(lm, spec, show, stop, note).run()


class _Run:
    """One process's part of a job; see `run`."""

    def __init__(self, lm, spec: JobSpec, show, stop, note):
        self._lm, self._spec = lm, spec
        self._show, self._stop, self._note = show, stop, note
        self._source, self._folder = Input(spec.input), storage.folder(spec.output)
        self._members = Members(self._folder)
        self._waited, self._pause = 0.0, _PAUSE

    def run(self) -> Result:
        sharing(self._spec.share_prefix, self._lm.config, self._spec.options)
        folder_files.to_resume(self._folder, self._spec)  # before the folder is touched
        self._source.keep()
        self._folder.create()
        with self._members.joined(), contextlib.closing(self._source):
            state = self._begin()
            folder_files.check_errors(self._spec, state)
            if state.done:
                folder_files.tidy(self._folder)
                content = folder_files.summary_of(self._folder, state)
                return Result(Summary(), content, ran=False)
            with self._show(self._index.records) as seen:
                summary = self._work(state, seen)
                return self._finish(state, summary)

    def _begin(self) -> State:
        """The state of the job, which this process begins or joins."""
        spec, folder = self._spec, self._folder
        index: Index | None = None
        while True:
            found = folder_files.to_resume(folder, spec)
            size = found.header["shard_size"] if found else spec.shard_size or SHARD_SIZE
            if index is None or index.size != size:
                index = Index(self._source, size, spec.limit)
            header = describe(self._lm, spec, index.info, size, self._members.token)
            if found is None:
                found = self._create(header)
            if found is not None:
                break
        folder_files.must_agree(spec, found, header, self._note)
        self._index = index
        self._claims = Claims(folder, self._members, found.job)
        files = self._claims.look()
        if not found.done:
            found = State(found.header, self._claims.entries(files))
        folder_files.check_parts(folder, found, files.parts)
        return found

    def _create(self, header: dict[str, Any]) -> State | None:
        """Begin a job; None if another process was faster."""
        new = State(header)
        if self._spec.overwrite:
            self._members.refuse_others(self._check_stop)
            # The journal goes last: until then this is the older job, and after that a new one.
            folder_files.clear(self._folder)
            self._folder.write(JOURNAL, new.to_bytes())
            return new
        self._folder.create_new(JOURNAL, new.to_bytes())
        return new if self._folder.read(JOURNAL) == new.to_bytes() else None

    def _work(self, state: State, seen: Callable[[Progress], None]) -> Summary:
        """Decode free shards until all shards are complete."""
        spec, index = self._spec, self._index
        ends = spec.options.for_model(self._lm.config).end_ids
        shards = Shards(spec, ends, self._tell)
        loop = self._loop = Loop(
            self._lm,
            self._intake(),
            shards,
            max_errors=spec.max_errors,
            errors=state.totals["errors"],
            records=sum(index.count(shard) for shard in self._claims.look().parts),
            batch_size=spec.batch_size or state.header["batch_size"],
            share_prefix=spec.share_prefix,
            seen=seen,
            stop=self._stop,
        )
        loop.progress.summary.chips = chips.used(self._lm.mesh)
        self._members.counts = loop.progress.summary.to_json
        with _saved(shards):
            while True:
                if (shard := self._next()) is not None:
                    self._waited, self._pause = 0.0, _PAUSE
                    loop.run(self._items(shard))
                    self._tell()
                elif len(self._files.parts) == len(index) or self._claims.check_job():
                    return loop.tally()
                else:
                    self._wait(len(index) - len(self._files.parts))

    def _intake(self) -> Intake:
        spec, lm = self._spec, self._lm

        def intake(repeated: set[int]) -> Intake:
            return Intake(
                spec.options,
                lm.config,
                lm.codec,
                raw=spec.raw,
                stop=spec.stop,
                samples=spec.num_samples,
                repeated=repeated,
            )

        return intake(self._index.repeated(intake(set())))

    def _items(self, shard: Shard | None) -> Iterator[Item]:
        """The records of a shard, and of those that are free when it has been read."""
        while shard is not None:
            for item in self._index.items(shard.entry.shard, skip=shard.entry.records):
                if shard.claim.lost:
                    break
                yield item._replace(shard=shard)
            shard = self._next()

    def _next(self) -> Shard | None:
        """Claim the first free shard of which something is left to decode."""
        found = True
        while found:
            found = False
            files = self._look()
            for number in range(len(self._index)):
                if not self._claims.is_free(number, files):
                    continue
                if (shard := self._claimed(number, files)) is None:
                    continue
                self._loop.progress.records += shard.entry.records
                self._loop.progress.first += shard.entry.records
                if shard.left:
                    return shard
                shard.complete()  # the owner before died just before that
                found = True
        return None

    def _claimed(self, number: int, files: Files) -> Shard | None:
        for tried in range(1, _TRIES + 1):
            if (claim := self._claims.take(number, files)) is None:
                return None
            try:
                return Shard(self._folder, claim, self._index.count(number))
            except UserError:
                files = self._look()
                if number in files.parts:  # the owner before was not dead after all
                    return None
                if tried == _TRIES:
                    raise
        return None

    def _look(self) -> Files:
        self._files = self._claims.look()
        complete = sum(self._index.count(shard) for shard in self._files.parts)
        progress = self._loop.progress
        progress.records = max(progress.records, complete)
        return self._files

    def _tell(self) -> None:
        """Let the other processes know what this one has done."""
        self._loop.tally()
        self._members.beat()

    def _check_stop(self) -> None:
        if (number := self._stop()) is not None:
            raise Stopped(number)

    def _wait(self, left: int) -> None:
        """Wait a moment, for other processes."""
        self._check_stop()
        time.sleep(self._pause)
        before, self._waited = self._waited, self._waited + self._pause
        self._pause = min(1.5 * self._pause, _LONGEST_PAUSE)
        if before < _PATIENCE <= self._waited and left:
            self._note(f"other processes decode the last {plural(left, 'shard')}; waiting for them")

    def _finish(self, state: State, summary: Summary) -> Result:
        """End the job, unless another process does."""
        end, folder, claims = len(self._index), self._folder, self._claims
        self._pause = _PAUSE
        while not claims.check_job():
            files = claims.look()
            if claims.is_free(end, files) and claims.take(end, files):
                try:
                    return Result(summary, self._end(state.header, summary), ran=True)
                except (UserError, OSError):
                    if not claims.check_job():
                        raise
            self._wait(0)
        folder_files.tidy(folder)  # this process may have written since
        return Result(summary, folder_files.summary_of(folder, state), ran=True)

    def _end(self, header: dict[str, Any], summary: Summary) -> dict[str, Any]:
        """Write what a job ends with; gives the content of `summary.json`.

        `UserError` if a shard is missing or damaged, or if there are too many bad records; or if
        another process has ended the job meanwhile, and removed the claims.
        """
        folder, files = self._folder, self._claims.look()
        state = State(header, self._claims.entries(files))
        for shard in range(len(self._index)):
            if shard not in state.entries or not state.entries[shard].complete:
                raise folder_files.damaged(folder, part_name(shard), "is in no claim")
        folder_files.check_parts(folder, state, files.parts)
        folder_files.check_errors(self._spec, state)
        others = [Summary.from_json(o["counts"]) for o in self._members.others().values()]
        return folder_files.end(folder, state, [summary, *others], self._spec.chip_hour)


@contextlib.contextmanager
def _saved(shards: Shards) -> Iterator[None]:
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
        raise
    finally:
        shards.close()


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
