"""A job with one output: records in, completions out in input order.

    source ─▶ (line, where, record) ─▶ Intake ─▶ requests ─▶ lm.stream ─▶ sink
                                         └─▶ bad records: end the job, or are set aside

A source is any iterator, a sink any object with `write`; `OutputFile` appears whole or not
at all.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

from leapjax.errors import UserError
from leapjax.jobs.summary import Summary
from leapjax.records import Intake, parse_line, read_lines, to_line, to_record
from leapjax.types import Completion, Request

# (line number from 1, what messages begin with, a record or its line in bytes)
Item = tuple[int, str, Any]
_FEW = 8  # so many requests are handed over as a list: the engine sees that it needs few slots


class Sink(Protocol):
    """Where completions go."""

    def write(self, completion: Completion) -> None:
        """Take the next completion, in input order."""
        ...


def from_file(stream: BinaryIO, name: str) -> Iterator[Item]:
    """The records of a JSONL file, lazily."""
    for line, text in read_lines(stream, name):
        yield line, f"{name} line {line}", text


def from_prompts(prompts: Iterable[str]) -> Iterator[Item]:
    """Prompts of the command line as records."""
    for number, prompt in enumerate(prompts, 1):
        yield number, f"prompt {number}", {"prompt": prompt}


class BadRecords:
    """Bad records of a job: up to a limit they are set aside, then they end it.

    Args:
      limit: how many are forgiven.
      keep: takes the error record `{line, id, error}` of each forgiven one.
    """

    def __init__(self, limit: int, keep: Callable[[dict[str, Any]], None]):
        self.limit, self.count, self._keep = limit, 0, keep

    def add(self, error: UserError, line: int, where: str, record: Any) -> None:
        """Set a bad record aside.

        Raises:
          UserError: it is one too many.
        """
        self.count += 1
        if self.count > self.limit:
            if self.limit:
                raise UserError(f"{error} (bad record {self.count}; --max-errors is {self.limit})")
            raise error
        own = record.get("id", line) if isinstance(record, dict) else None
        reason = str(error).removeprefix(f"{where}: ")
        self._keep({"line": line, "id": own, "error": reason})


def requests(source: Iterable[Item], intake: Intake, bad: BadRecords) -> Iterator[Request]:
    """Requests of a source's records, without the bad ones."""
    for line, where, given in source:
        record = given
        try:
            if isinstance(given, bytes):
                record = parse_line(given, where)
            made = intake.requests(record, line, where)
        except UserError as e:
            bad.add(e, line, where, record)
            continue
        yield from made


def run(
    lm,
    source: Iterable[Item],
    intake: Intake,
    sink: Sink,
    bad: BadRecords,
    *,
    batch_size: int | None = None,
    seen: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Decode a source's records into a sink.

    Args:
      lm: the model, a `leapjax.LM`.
      source: records; read within the engine's look-ahead only.
      intake: checks and tokenises them.
      sink: takes the completions in input order.
      bad: takes the bad records.
      batch_size: rows decoded at once; None lets the engine choose.
      seen: called after each completion with the counts so far.

    Returns:
      The counts.

    Raises:
      UserError: a bad record too many, or the sink fails.
    """
    summary = Summary(eos_id=lm.config.eos_token_id)
    stream = requests(source, intake, bad)
    head = list(itertools.islice(stream, _FEW + 1))
    work = head if len(head) <= _FEW else itertools.chain(head, stream)
    for completion in lm.stream(work, batch_size=batch_size):
        summary.add(completion)
        sink.write(completion)
        seen(summary)
    return summary


class LineSink:
    """Records as JSON lines on an open text stream, such as stdout.

    Args:
      stream: where to.
      details: see `to_record`.
    """

    def __init__(self, stream: IO[str], details: bool = False):
        self._stream, self._details = stream, details

    def write(self, completion: Completion) -> None:
        """Write one line, at once visible to the reader."""
        self._stream.write(to_line(to_record(completion, self._details)))
        self._stream.flush()


class OutputFile:
    """A JSONL file, and one of errors beside it, that appear when the job has succeeded.

    Use as a context: leaving it without an exception puts the files in place.

    Args:
      path: ends in `.jsonl`.
      details: see `to_record`.
      overwrite: an existing file may be replaced.

    Raises:
      UserError: the path can't be written.
    """

    def __init__(self, path: str | Path, *, details: bool = False, overwrite: bool = False):
        self.path = Path(path)
        check_output(self.path, overwrite)
        self._details = details
        self._lines = _Pending(self.path)
        self._errors = _Pending(self.path.with_suffix(".errors.jsonl"))

    @property
    def errors_path(self) -> Path:
        """Where the bad records go."""
        return self._errors.path

    def __enter__(self) -> OutputFile:
        self._lines.open()
        return self

    def write(self, completion: Completion) -> None:
        """Add a completion."""
        self._lines.write(to_line(to_record(completion, self._details)))

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Add a bad record to the file of errors."""
        self._errors.write(to_line(record))

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self._lines.discard()
            self._errors.discard()
            return
        if not self._errors.publish() and self._errors.path.exists():
            self._errors.path.unlink()  # of an earlier run whose output is replaced here
        self._lines.publish()


class _Pending:
    """A file under a temporary name until `publish`; made at the first write."""

    def __init__(self, path: Path):
        self.path = path
        self._hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._file: IO[str] | None = None

    def open(self) -> IO[str]:
        if self._file is None:
            try:
                self._file = open(self._hidden, "w", encoding="utf-8", newline="\n")
            except OSError as e:
                raise _unwritable(self.path, e) from e
        return self._file

    def write(self, line: str) -> None:
        try:
            self.open().write(line)
        except OSError as e:
            raise _unwritable(self.path, e) from e

    def publish(self) -> bool:
        """Put the file in place; False where nothing was opened."""
        if self._file is None:
            return False
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._hidden, self.path)
        except OSError as e:
            self.discard()
            raise _unwritable(self.path, e) from e
        return True

    def discard(self) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError:  # a full disk: what was buffered is not wanted any more
            pass
        self._hidden.unlink(missing_ok=True)


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output path that can't become a file, before any work is done.

    Args:
      path: where the output shall be.
      overwrite: an existing file may be replaced.

    Raises:
      UserError: not a `.jsonl` name, no such folder, not writable, or in the way.
    """
    if path.suffix != ".jsonl":
        raise UserError(f"output {path}: not a file name that ends in .jsonl")
    if path.exists() and not path.is_file():
        raise UserError(f"output {path}: is there already and is not an ordinary file")
    if path.exists() and not overwrite:
        raise UserError(f"output {path}: is there already; choose another name or add --overwrite")
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"output {path}: there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"output {path}: the folder {folder} is not writable")


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"output {path}: can't be written ({error.strerror or error})")
