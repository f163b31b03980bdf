"""Read safetensors headers without trusting them, and write such files as a stream.

The format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes.
Source: https://github.com/huggingface/safetensors (format section); the limits are its own.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from leapjax.errors import UserError

from .tensor import Tensor, row_major, shown

_MAX_HEADER = 100_000_000
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
DTYPE_NAMES = {np.dtype(v): k for k, v in _DTYPES.items()}
"""numpy dtype -> the format's name for it."""

AGAIN = "fetch the file again"


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Args:
      file: path of the file.

    Returns:
      Name -> `Tensor`, in the order of their data.

    Raises:
      UserError: not a safetensors file, truncated, or a header that doesn't describe the file.
    """
    try:
        size = os.path.getsize(file)
        with open(file, "rb") as f:
            start = f.read(8)
            if len(start) < 8:
                raise UserError(f"{file.name}: {size} bytes is no safetensors file; {AGAIN}")
            length = struct.unpack("<Q", start)[0]
            if length > min(_MAX_HEADER, size - 8):
                raise UserError(
                    f"{file.name}: header claims {length} bytes, the file has {size}; "
                    f"truncated or not a safetensors file: {AGAIN}"
                )
            text = f.read(length)
    except OSError as e:
        raise UserError(f"{file.name}: can't be read ({e.strerror})") from e
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file.name}: header is not valid JSON ({_first_line(e)}); {AGAIN}") from e
    _check_metadata(file, header.pop("__metadata__", {}))
    data = size - 8 - length
    out, end = {}, 0
    entries = {name: _entry(file, name, value) for name, value in header.items()}
    for name, (dtype, shape, (first, last)) in sorted(
        entries.items(), key=lambda item: (item[1][2], item[0])
    ):
        where = f"{file.name}: tensor {shown(name)}"
        need = math.prod(shape) * dtype.itemsize
        if last - first != need:
            raise UserError(
                f"{where}: header gives it {last - first} bytes, its shape and dtype need {need}; "
                f"{AGAIN}"
            )
        if last > data:
            raise UserError(
                f"{where}: lies at bytes {first} to {last} of {data}: the file is truncated, or "
                f"its header lies; {AGAIN}"
            )
        if first != end:
            raise UserError(
                f"{where}: data starts at byte {first}, expected {end} (tensors may neither "
                f"overlap nor leave holes); {AGAIN}"
            )
        end = last
        out[name] = Tensor(
            name=name,
            file=file,
            dtype=dtype,
            shape=shape,
            offset=8 + length + first,
            strides=row_major(shape),
            swapped=sys.byteorder == "big",
        )
    if end != data:
        raise UserError(
            f"{file.name}: {data - end} bytes after the last tensor belong to nothing; {AGAIN}"
        )
    return out


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, refusing a key given twice (which one would count?)."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key occurs twice")
    return out


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _check_metadata(file: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UserError(f"{file.name}: __metadata__ must map strings to strings; {AGAIN}")


def _entry(file: Path, name: str, value: object):
    """(dtype, shape, (first, last)) of one header entry, each of the right type."""
    where = f"{file.name}: tensor {shown(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{where}: header needs exactly dtype, shape and data_offsets; {AGAIN}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UserError(
            f"{where}: dtype {shown(str(dtype)[:40])} is not supported (known: "
            f"{', '.join(_DTYPES)}); use an unquantised checkpoint"
        )
    if not _counts(shape) or len(shape) > 8:
        raise UserError(f"{where}: shape is not a short list of sizes; {AGAIN}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{where}: data_offsets are not [begin, end]; {AGAIN}")
    return np.dtype(_DTYPES[dtype]), tuple(shape), tuple(offsets)


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def write_file(
    file: Path,
    entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    values: Callable[[str], Iterable[np.ndarray]],
) -> Iterator[int]:
    """Write a safetensors file as its values come.

    Args:
      file: to create.
      entries: name -> (dtype, shape).
      values: name -> the tensor's values, in C-contiguous pieces along its first axis.

    Yields:
      Bytes of each piece, when it is written.
    """
    # The format's own order: widest dtype first, so that all are aligned, then by name.
    names = sorted(entries, key=lambda n: (-entries[n][0].itemsize, n))
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = entries[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            for piece in values(name):
                f.write(piece.reshape(-1).view(np.uint8).data)
                size = piece.nbytes
                del piece  # before the next one is made
                yield size
