"""Where records go that are no folder job's: an open stream, or one output file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from leapjax import storage
from leapjax.errors import UserError
from leapjax.jobs.source import Item
from leapjax.jsonl import to_line
from leapjax.records import to_record
from leapjax.types import Completion


class LineSink:
    """Records as JSON lines on an open text stream, such as stdout.

    `keep_bad`: takes the error record of each bad record.
    """

    def __init__(
        self,
        stream: IO[str],
        details: bool = False,
        keep_bad: Callable[[dict], None] = print,
        fields: Sequence[str] | None = None,
    ):
        self._stream, self._keep_bad = stream, keep_bad
        self._details, self._fields = details, fields

    def write(self, completion: Completion) -> None:
        """Write one line and flush it."""
        self._stream.write(to_line(to_record(completion, self._details, self._fields)))
        self._stream.flush()

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Pass a bad record on."""
        self._keep_bad(record)

    def settle(self, item: Item) -> None:
        """Nothing to do: every line is flushed."""


class Whole:
    """A file that is written bit by bit and appears when it is complete, over an older one.

    `path`: a path or URL; raises as `open_read`.
    """

    def __init__(self, path: str):
        if not storage.is_remote(path):
            path = os.path.realpath(storage.local_path(path))  # a link stays, its target is written
        self._folder, self._name = storage.split(path)
        self._hidden = f".{self._name}.{os.getpid()}.part"
        self._file: storage.Growing | None = self._folder.stream(self._hidden)

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        assert self._file is not None
        self._file.write(data)

    def publish(self) -> None:
        """Put the file in place, to survive a crash."""
        assert self._file is not None
        self._file.sync()
        self._file.close()
        self._folder.rename(self._hidden, self._name)
        self._file = None

    def discard(self) -> None:
        """Leave nothing, unless the file is published."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._folder.remove(self._hidden)
        self._file = None


class OutputFile:
    """A JSONL file and a file of errors; both appear when the job has succeeded.

    A context manager: leaving it without an exception puts the files in place.

    `path`: a path or a URL that ends in `.jsonl`; `overwrite`: an existing file may be replaced.
    """

    def __init__(
        self,
        path: str,
        *,
        details: bool = False,
        overwrite: bool = False,
        fields: Sequence[str] | None = None,
    ):
        check_output(path, overwrite)
        self.path = path
        self.errors_path = f"{path.removesuffix('.jsonl')}.errors.jsonl"
        self._details, self._fields = details, fields
        self._rows: Whole | None = None
        self._errors: Whole | None = None

    def __enter__(self) -> OutputFile:
        try:
            self._rows = Whole(self.path)
        except OSError as e:
            raise _unwritable(self.path, e) from e
        return self

    def write(self, completion: Completion) -> None:
        """Add a completion."""
        self._add(self._rows, to_record(completion, self._details, self._fields))

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Add a bad record to the file of errors."""
        if self._errors is None:
            self._errors = Whole(self.errors_path)
        self._add(self._errors, record)

    def settle(self, item: Item) -> None:
        """Nothing to do: the file counts as a whole."""

    def __exit__(self, kind, error, trace) -> None:
        files = [f for f in (self._errors, self._rows) if f is not None]
        try:
            if kind is None:
                if self._errors is None:
                    storage.remove(self.errors_path)  # of the run whose output is replaced
                for file in files:
                    file.publish()
        except OSError as e:
            raise _unwritable(self.path, e) from e
        finally:
            for file in files:
                file.discard()

    def _add(self, file: Whole | None, record: dict[str, Any]) -> None:
        assert file is not None
        try:
            file.write(to_line(record).encode())
        except OSError as e:
            raise _unwritable(self.path, e) from e


def check_output(
    path: str,
    overwrite: bool,
    suffixes: tuple[str, ...] = (".jsonl",),
    what: str = "output",
) -> None:
    """Refuse an output path that can't become a file, before any work is done.

    `overwrite`: an existing file may be replaced; `what`: what messages call the file. Raises
    UserError: another suffix, no such folder, not writable, or the path exists.
    """
    taken = f"{what} {path}: is there already; choose another name or add --overwrite"
    if not path.endswith(suffixes):
        raise UserError(f"{what} {path}: not a file name that ends in {' or '.join(suffixes)}")
    if storage.is_remote(path):
        try:
            if storage.exists(path) and not overwrite:
                raise UserError(taken)
        except OSError as e:
            raise UserError(f"{what} {path}: can't be written ({e.strerror or e})") from e
        return
    file = Path(os.path.realpath(storage.local_path(path)))  # a link is written through
    if file.exists() and not file.is_file():
        raise UserError(f"{what} {path}: is there already and is not an ordinary file")
    if file.exists() and not overwrite:
        raise UserError(taken)
    folder = file.parent
    if not folder.is_dir():
        raise UserError(f"{what} {path}: there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{what} {path}: the folder {folder} is not writable")


def _unwritable(path: str, error: OSError) -> UserError:
    return UserError(f"output {path}: can't be written ({error.strerror or error})")
