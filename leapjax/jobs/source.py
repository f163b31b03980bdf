"""Inputs: a JSONL file here or elsewhere, stdin, or prompts of the command line.

Lines are read lazily.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from leapjax.data_files import unpacked
from leapjax.errors import UserError
from leapjax.jsonl import read_lines
from leapjax.storage import is_remote, local_path, open_read

_PIECE = 1 << 20


class Item(NamedTuple):
    """One record of the input."""

    line: int  # its number, from 1
    where: str  # the beginning of messages about it
    given: Any  # the record, or its line in bytes
    shard: Any = None  # where a folder job keeps the answers (`leapjax.jobs.shards.Shard`)


@dataclasses.dataclass(frozen=True)
class InputInfo:
    """Identity and length of an input; a stream that was not kept has only a path."""

    path: str  # as it was given
    bytes: int | None = None  # length of the (uncompressed) content
    sha256: str | None = None  # of the content
    lines: int | None = None  # blank ones included


class Input:
    """A JSONL input: a path, a URL, or `-` for stdin; gzip, bzip2 and xz are unpacked.

    Methods raise `UserError` if it can't be read.
    """

    def __init__(self, path: str):
        self.path = path
        self.name = "stdin" if path == "-" else path
        self.is_stream = path == "-" or not (is_remote(path) or _is_ordinary(path))
        self._kept: BinaryIO | None = None
        self._stream: Any = None  # for `lines`, at byte `_position` of the content
        self._position = 0
        self._lines = _Lines(io.BytesIO(), self)  # of the last reading
        if not self.is_stream:
            with self._open():  # a wrong name is an error at once
                pass

    def keep(self) -> None:
        """Copy a stream to a temporary file, so that it can be read more than once."""
        if not self.is_stream or self._kept is not None:
            return
        kept = tempfile.TemporaryFile()
        with self._open() as stream:
            while piece := self._read(stream):
                try:
                    kept.write(piece)
                except OSError as e:
                    raise UserError(
                        f"input {self.name}: can't be kept in {tempfile.gettempdir()} "
                        f"({e.strerror}); set TMPDIR to a folder with room"
                    ) from e
        self._kept = kept

    def scan(self) -> InputInfo:
        """Read the whole input once, for its hash and length; a stream is not read.

        Raises:
          UserError: it can't be read.
        """
        if self.is_stream:
            return InputInfo(self.path)
        for _ in self.lines():
            pass
        self.close()
        return self.info()

    def items(self) -> Iterator[Item]:
        """The records in order; call it once.

        Raises:
          UserError: the input can't be read, or a line is too long.
        """
        for line, text, _ in self.lines():
            yield Item(line, f"{self.name} line {line}", text)
        self.close()

    def lines(self, offset: int = 0, first: int = 1) -> Iterator[tuple[int, bytes, int]]:
        """The lines that hold something, with their numbers and the bytes before them.

        Begins `offset` bytes into the (unpacked) content, with line number `first`. One reading at
        a time: another one moves the place.
        """
        self._seek(offset)
        lines = self._lines = _Lines(self._stream, self)
        for line, text in read_lines(lines, self.name, first):  # type: ignore[arg-type]
            self._position = offset + lines.bytes
            yield line, text, self._position - lines.last
        self._position = offset + lines.bytes

    def info(self) -> InputInfo:
        """Identity and length of what `lines` has read, from the beginning to the end."""
        read = self._lines
        return InputInfo(self.path, read.bytes, read.digest.hexdigest(), read.count)

    def close(self) -> None:
        """Close what `lines` has opened."""
        if self._stream is not None and self._stream is not self._kept:
            self._stream.close()
        self._stream = None

    def _seek(self, offset: int) -> None:
        if self._stream is None or self._position > offset:
            self.close()
            self._stream, self._position = self._open().__enter__(), 0
        try:
            if self._position != offset and self._stream.seekable():
                self._stream.seek(offset)
                self._position = offset
            while self._position < offset:  # packed
                piece = self._read(self._stream, min(_PIECE, offset - self._position))
                if not piece:
                    return  # it has become shorter
                self._position += len(piece)
        except OSError as e:
            raise self._unreadable(e) from e

    def _open(self) -> contextlib.AbstractContextManager[Any]:
        if self._kept is not None:
            self._kept.seek(0)
            return contextlib.nullcontext(self._kept)
        if self.path == "-":
            return contextlib.nullcontext(unpacked(_stdin(), self.name))
        try:
            stream = open_read(self.path)
        except OSError as e:
            reason = "no such file" if isinstance(e, FileNotFoundError) else e.strerror or e
            raise UserError(f"input {self.name}: {reason}") from e
        try:
            return unpacked(stream, self.name)
        except UserError:
            raise
        except Exception as e:
            raise self._unreadable(e) from e

    def _read(self, stream: BinaryIO, size: int = _PIECE) -> bytes:
        try:
            return stream.read(size)
        except Exception as e:  # remote filesystems and decompressors have their own kinds
            raise self._unreadable(e) from e

    def _unreadable(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or error
        return UserError(f"input {self.name}: can't be read ({reason})")


class _Lines:
    """A stream whose lines are counted: all `bytes`, and those of the `last` line."""

    def __init__(self, stream: BinaryIO, owner: Input):
        self._stream, self._owner = stream, owner
        self.bytes = self.last = self.count = 0
        self.digest = hashlib.sha256()

    def readline(self, limit: int) -> bytes:
        try:
            line = self._stream.readline(limit)
        except Exception as e:
            raise self._owner._unreadable(e) from e
        self.last = len(line)
        self.bytes += self.last
        self.count += bool(line)
        self.digest.update(line)
        return line


def from_prompts(prompts: Iterable[str | dict[str, str]]) -> Iterator[Item]:
    """Prompts of the command line as items; an object is a record already."""
    for number, prompt in enumerate(prompts, 1):
        record = prompt if isinstance(prompt, dict) else {"prompt": prompt}
        yield Item(number, f"prompt {number}", record)


def _stdin() -> BinaryIO:
    """Standard input with a buffer of its own.

    A thread that waits for a line holds the buffer's lock, and Python aborts at its end if the
    lock of `sys.stdin` is held.
    """
    try:
        return open(os.dup(sys.stdin.fileno()), "rb")
    except (AttributeError, OSError, ValueError):  # replaced by something without a descriptor
        return sys.stdin.buffer


def _is_ordinary(path: str) -> bool:
    """Whether a local path can be read twice; a pipe can't. A missing file is an error later."""
    try:
        return not stat.S_ISFIFO(os.stat(local_path(path)).st_mode)
    except OSError:
        return True
