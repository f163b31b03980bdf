"""Inputs: a JSONL file here or elsewhere, stdin, or prompts of the command line.

Lines are read lazily. Each has a `chain`, a hash of all lines up to it, by which a resumed job
recognises its input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from leapjax.data_files import unpacked
from leapjax.errors import UserError
from leapjax.jsonl import read_lines
from leapjax.storage import is_remote, local_path, open_read

_PIECE = 1 << 20


class Item(NamedTuple):
    """One record of the input.

    Attributes:
      line: its number, from 1.
      where: the beginning of messages about it.
      given: the record, or its line in bytes.
      chain: hex digest over all lines up to it; empty where the input is no file.
      shard: shard of the record, in a folder job.
    """

    line: int
    where: str
    given: Any
    chain: str = ""
    shard: int = 0


@dataclasses.dataclass(frozen=True)
class InputInfo:
    """Identity and length of an input; a stream has only a path.

    Attributes:
      path: as it was given.
      bytes: length of the (uncompressed) content.
      sha256: hash of the content.
      lines: number of lines, blank ones included.
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None
    lines: int | None = None


class Input:
    """A JSONL input.

    Args:
      path: a path, a URL, or `-` for stdin; gzip, bzip2 and xz are unpacked.

    Raises:
      UserError: it can't be opened.
    """

    def __init__(self, path: str):
        self.path = path
        self.name = "stdin" if path == "-" else path
        self.is_stream = path == "-" or not (is_remote(path) or _is_ordinary(path))
        self._digest = hashlib.sha256()
        self._bytes = 0
        if not self.is_stream:
            with self._open():  # a wrong name is an error at once
                pass

    def scan(self) -> InputInfo:
        """Read the whole input once, for its hash and length; a stream is not read.

        Raises:
          UserError: it can't be read.
        """
        if self.is_stream:
            return InputInfo(self.path)
        digest, size, lines, last = hashlib.sha256(), 0, 0, b"\n"
        with self._open() as stream:
            while piece := self._read(stream):
                digest.update(piece)
                size += len(piece)
                lines += piece.count(b"\n")
                last = piece[-1:]
        return InputInfo(self.path, size, digest.hexdigest(), lines + (last != b"\n"))

    def items(self) -> Iterator[Item]:
        """The records in order; call it once.

        Raises:
          UserError: the input can't be read, or a line is too long.
        """
        chain = b""
        with self._open() as stream:
            counted = _Counted(stream, self)
            for line, text in read_lines(counted, self.name):  # type: ignore[arg-type]
                chain = hashlib.blake2b(text, key=chain, digest_size=16).digest()
                yield Item(line, f"{self.name} line {line}", text, chain.hex())

    def check_unchanged(self, info: InputInfo) -> None:
        """Refuse an input that changed since `scan`; call it after `items` has ended."""
        read = (self._bytes, self._digest.hexdigest())
        if info.sha256 is not None and (info.bytes, info.sha256) != read:
            raise UserError(
                f"input {self.name}: changed while it was read; restore it and run again with "
                "--resume, or start anew with --overwrite"
            )

    def _open(self) -> contextlib.AbstractContextManager[Any]:
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

    def _read(self, stream: BinaryIO) -> bytes:
        try:
            return stream.read(_PIECE)
        except Exception as e:  # remote filesystems and decompressors have their own kinds
            raise self._unreadable(e) from e

    def _unreadable(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or error
        return UserError(f"input {self.name}: can't be read ({reason})")


class _Counted:
    """A stream whose lines are hashed as they are read."""

    def __init__(self, stream: BinaryIO, owner: Input):
        self._stream, self._owner = stream, owner

    def readline(self, limit: int) -> bytes:
        try:
            line = self._stream.readline(limit)
        except Exception as e:
            raise self._owner._unreadable(e) from e
        self._owner._digest.update(line)
        self._owner._bytes += len(line)
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
