"""Opening data files: packed ones are recognised by their content, not by their name."""

import bz2
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from leapjax.errors import UserError
from leapjax.jsonl import parse_line, read_lines
from leapjax.storage import open_read

_PIECE = 2**20
_UNPACK = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
# Formats that Python can't read; no JSON or text in UTF-8 begins so.
_REFUSED = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x1f\x9d": "compress (.Z)",
    b"PAR1": "Parquet",
}


def open_data(path: str) -> BinaryIO:
    """Open a data file, unpacked if its content is gzip, bzip2 or xz.

    Raises OSError: it can't be opened; UserError: it is packed in another way, or no library here
    knows such URLs.
    """
    return unpacked(open_read(path), path)


def read_jsonl(path: str, limit: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a JSONL file, each after what messages call its place (`FILE line 3`).

    `path`: a path or URL; the file may be packed; `limit`: how many at most; None is all.
    """
    try:
        with open_data(path) as stream:
            for number, line in itertools.islice(read_lines(stream, path), limit):
                yield (where := f"{path} line {number}"), parse_line(line, where)
    except OSError as e:
        raise UserError(f"{path}: can't be read ({e.strerror or e})") from e


def unpacked(stream: Any, name: str) -> BinaryIO:
    """A stream's content, unpacked if it is gzip, bzip2 or xz.

    `stream`: a buffered one in bytes; need not be seekable; `name`: how messages call it. Raises
    OSError: it can't be read; UserError: it is packed in another way.
    """
    if not hasattr(stream, "peek"):
        stream = io.BufferedReader(stream)
    head = stream.peek(8)
    for magic, kind in _REFUSED.items():
        if head.startswith(magic):
            stream.close()
            raise UserError(f"{name}: is {kind}, which is not read; unpack it, or use gzip")
    for magic, unpack in _UNPACK.items():
        if head.startswith(magic):
            return io.BufferedReader(_Unpacked(unpack(stream), stream), _PIECE)
    return stream


class _Unpacked(io.RawIOBase):
    """Unpacked bytes; what is wrong with the packed ones becomes an OSError."""

    def __init__(self, unpacker: Any, stream: Any):
        self._unpacker, self._stream = unpacker, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._unpacker.read1(len(buffer))
        except EOFError as e:
            raise OSError("the packed file ends early; fetch it again") from e
        except (OSError, zlib.error, lzma.LZMAError) as e:
            raise OSError(f"the packed file is damaged: {e}") from e
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._unpacker.close()
            self._stream.close()
        super().close()
