"""Where the tensors of a safetensors file lie, and writing such files as a stream.

The format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes.
Source: https://github.com/huggingface/safetensors (format section). The library writes only what is
in memory as a whole, so files larger than that are written here.
"""

import json
import math
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from leapjax.errors import UserError

from .tensor import Tensor, row_major, shown

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


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    The library reads and checks the header: sizes, and that the tensors cover the data without
    holes or overlaps. It does not say where a tensor lies, which is read here from the header that
    it accepted, so that values can be streamed into memory of our own. Returns name -> `Tensor`, in
    the order of their data.
    """
    try:
        with safe_open(file, "numpy"):
            pass
        with open(file, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length))
    except OSError as e:
        raise UserError(f"{file.name}: can't be read ({e.strerror or e})") from e
    except (SafetensorError, ValueError) as e:
        reason = ascii(str(e).removeprefix("Error while deserializing header: "))[1:-1][:160]
        raise UserError(
            f"{file.name}: is truncated or no safetensors file ({reason}); fetch the file again"
        ) from e
    header.pop("__metadata__", None)
    out = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _DTYPES:
            raise UserError(
                f"{file.name}: tensor {shown(name)}: dtype {shown(entry['dtype'])} is not "
                f"supported (known: {', '.join(_DTYPES)}); use an unquantised checkpoint"
            )
        shape = tuple(entry["shape"])
        out[name] = Tensor(
            name=name,
            file=file,
            dtype=np.dtype(_DTYPES[entry["dtype"]]),
            shape=shape,
            offset=8 + length + entry["data_offsets"][0],
            strides=row_major(shape),
            swapped=sys.byteorder == "big",
        )
    return out


def write_file(
    file: Path,
    entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    values: Callable[[str], Iterable[np.ndarray]] | None,
) -> Iterator[int]:
    """Write a safetensors file as its values come; yields the bytes of each piece written.

    `entries` has dtype and shape by name; `values` gives a tensor's values, in C-contiguous pieces
    along its first axis. Without it all of them are a hole in the file, zeros that take no room on
    disk.
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
        if values is None:
            f.truncate(8 + len(text) + end)
            yield end
            return
        for name in names:
            for piece in values(name):
                f.write(piece.reshape(-1).view(np.uint8).data)
                size = piece.nbytes
                del piece  # before the next one is made
                yield size
