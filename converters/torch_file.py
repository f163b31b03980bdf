"""Read a `pytorch_model.bin` without torch: a zip of raw storages and one pickle.

Source: the layout that torch.save has written since torch 1.6 (`NAME/data.pkl`,
`NAME/data/KEY`, `NAME/byteorder`); the zip fields are those of PKWARE's APPNOTE.
"""

import os
import struct
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

from leapjax.errors import UserError

from .tensor import Tensor, shown
from .torch_pickle import read_views

_MAX_DIRECTORY = 64 << 20
_MAX_PICKLE = 64 << 20
AGAIN = "fetch the file again"


def read_torch(file: Path) -> dict[str, Tensor]:
    """The tensors of one `.bin` file; tied ones share bytes and appear under each name."""
    try:
        with open(file, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if f.read(4) != b"PK\x03\x04":
                raise UserError(
                    f"{file.name}: not a zip file as torch has written since 1.6 (an old-style "
                    "or damaged .bin); use a safetensors copy, or save it again with a newer torch"
                )
            _check_directory(f, size, file.name)
            try:
                with zipfile.ZipFile(f) as z:
                    infos = z.infolist()
            except Exception as e:  # zipfile has a dozen ways to reject a hostile directory
                raise UserError(f"{file.name}: damaged zip directory ({e}); {AGAIN}") from e
            entries = _locate(f, size, infos, file.name)
            root = _root(entries, file.name)
            order = _read(f, entries.get(f"{root}/byteorder", (0, 0)), 16, file.name)
            pickled = _read(f, entries[f"{root}/data.pkl"], _MAX_PICKLE, file.name)
    except OSError as e:
        raise UserError(f"{file.name}: can't be read ({e.strerror})") from e
    if order not in (b"", b"little", b"big"):
        raise UserError(f"{file.name}: unknown byte order; {AGAIN}")
    swapped = (order or b"little").decode() != sys.byteorder
    out = {}
    for name, view in read_views(pickled, file.name).items():
        storage = view.storage
        where = f"{file.name}: tensor {shown(name)}"
        if f"{root}/data/{storage.key}" not in entries:
            raise UserError(f"{where}: its storage {shown(storage.key)} is missing; {AGAIN}")
        start, length = entries[f"{root}/data/{storage.key}"]
        if length != storage.count * storage.dtype.itemsize:
            raise UserError(
                f"{where}: its storage has {length} bytes, the pickle says "
                f"{storage.count * storage.dtype.itemsize}; {AGAIN}"
            )
        out[name] = Tensor(
            name=name,
            file=file,
            dtype=storage.dtype,
            shape=view.shape,
            offset=start + view.offset * storage.dtype.itemsize,
            strides=view.strides,
            swapped=swapped,
        )
    return out


def _check_directory(f: BinaryIO, size: int, where: str) -> None:
    """Refuse a directory too large to be honest before zipfile reads it into memory."""
    tail = min(size, 22 + 65535 + 20)
    f.seek(size - tail)
    data = f.read(tail)
    at = data.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(data):
        raise UserError(f"{where}: the zip directory is missing: truncated file; {AGAIN}")
    length = struct.unpack_from("<L", data, at + 12)[0]
    locator = at - 20
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        f.seek(min(struct.unpack_from("<Q", data, locator + 8)[0], size))
        record = f.read(56)
        if len(record) == 56 and record[:4] == b"PK\x06\x06":
            length = max(
                length if length != 2**32 - 1 else 0, struct.unpack_from("<Q", record, 40)[0]
            )
    if length > min(_MAX_DIRECTORY, size):
        raise UserError(f"{where}: a zip directory of {length} bytes is not plausible; {AGAIN}")


def _locate(f: BinaryIO, size: int, infos: list[zipfile.ZipInfo], where: str):
    """Entry name -> (start, length) of its bytes in the file; stored, disjoint, inside."""
    out: dict[str, tuple[int, int]] = {}
    for info in infos:
        name = info.filename
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UserError(f"{where}: zip entry {shown(name)} is compressed or encrypted; {AGAIN}")
        if name in out or name.startswith(("/", "\\")) or ".." in name.split("/"):
            raise UserError(f"{where}: zip entry name {shown(name)} is not acceptable; {AGAIN}")
        f.seek(min(max(info.header_offset, 0), size))
        header = f.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04" or info.header_offset < 0:
            raise UserError(f"{where}: zip entry {shown(name)} has no header; {AGAIN}")
        start = info.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        if info.file_size != info.compress_size or start + info.file_size > size:
            raise UserError(
                f"{where}: zip entry {shown(name)} claims {info.file_size} bytes, more than the "
                f"file has: truncated; {AGAIN}"
            )
        out[name] = (start, info.file_size)
    end, last = 0, ""
    for name, (start, length) in sorted(out.items(), key=lambda item: (item[1], item[0])):
        if start < end:
            raise UserError(
                f"{where}: zip entries {shown(last)} and {shown(name)} overlap; {AGAIN}"
            )
        end, last = start + length, name
    return out


def _root(entries: dict[str, tuple[int, int]], where: str) -> str:
    """The folder inside the zip that everything lies in."""
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    roots = [root for root in roots if "/" not in root]
    if len(roots) != 1:
        raise UserError(f"{where}: a zip, but not one that torch.save wrote (no data.pkl)")
    return roots[0]


def _read(f: BinaryIO, place: tuple[int, int], limit: int, where: str) -> bytes:
    start, length = place
    if length > limit:
        raise UserError(f"{where}: an entry of {length} bytes where {limit} is the limit; {AGAIN}")
    f.seek(start)
    return f.read(length)
