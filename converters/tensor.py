"""One tensor in a file: where its bytes lie, and how to read a part of them.

Every format we read stores a tensor as plain bytes at some place in a file, so one class
serves them all; nothing is read until somebody asks, and then only what was asked for.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from leapjax.checkpoint import aligned_empty
from leapjax.errors import UserError

BLOCK_BYTES = 4 << 20
"""How many bytes one read asks for: large enough for disks, small beside any tensor."""

FLOATS = {np.dtype(t): t for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)}
"""The dtypes a weight may have."""

# Exponent bits: all of them set means infinity or NaN. An integer AND is several times
# faster than isfinite on bfloat16.
_EXPONENT = {
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float64): (np.uint64, 0x7FF0000000000000),
}


def shown(name: str) -> str:
    """A name from a file, fit for a one-line message whatever it contains."""
    return repr(name if len(name) <= 120 else name[:117] + "...")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk."""

    name: str  # as the checkpoint spells it
    file: Path
    dtype: np.dtype  # in native byte order
    shape: tuple[int, ...]
    offset: int  # where its first element lies, bytes from the start of the file
    strides: tuple[int, ...]  # elements to skip per axis (row-major when contiguous); >= 0
    swapped: bool = False  # stored in the other byte order than this machine's

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def where(self) -> str:
        """`FILE: tensor NAME`, the beginning of every message about it."""
        return f"{self.file.name}: tensor {shown(self.name)}"

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after the other, last axis fastest."""
        return all(
            n == 1 or s == c
            for n, s, c in zip(self.shape, self.strides, row_major(self.shape), strict=True)
        )

    def part(self, start: int, count: int) -> Tensor:
        """Rows [start, start + count) as a tensor of their own; no byte is read."""
        skip = start * self.strides[0] * self.dtype.itemsize
        shape = (count, *self.shape[1:])
        return dataclasses.replace(self, shape=shape, offset=self.offset + skip)

    def item(self, i: int) -> Tensor:
        """Row i of the first axis as a tensor with one axis less; no byte is read."""
        row = self.part(i, 1)
        return dataclasses.replace(row, shape=self.shape[1:], strides=self.strides[1:])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read `tensor[start:stop]` of the first axis into a new C-contiguous array of `dtype`."""
        shape = (stop - start, *self.shape[1:])
        raw = np.dtype(f"u{self.dtype.itemsize}")
        if 0 in shape:
            return np.empty(shape, self.dtype)
        first = self.offset + start * self.strides[0] * raw.itemsize
        try:
            if self.contiguous:
                out = np.empty(shape, raw)
                with open(self.file, "rb", buffering=0) as f:
                    f.seek(first)
                    left = out.data.cast("B")
                    while left and (n := f.readinto(left)):
                        left = left[n:]
                if left:
                    raise UserError(
                        f"{self.where}: the file ends {len(left)} bytes before the tensor does; "
                        "fetch the file again"
                    )
            else:
                with (
                    open(self.file, "rb") as f,
                    mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m,
                ):
                    steps = tuple(s * raw.itemsize for s in self.strides)
                    out = np.ndarray(shape, raw, m, first, steps).copy("C")
        except (OSError, ValueError, TypeError) as e:
            # numpy says TypeError and mmap ValueError when the file has shrunk meanwhile.
            raise UserError(f"{self.where}: can't be read ({e})") from e
        return (out.byteswap() if self.swapped else out).view(self.dtype)


def spans(
    shape: tuple[int, ...], dtype: np.dtype, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, int]]:
    """Cut rows [start, stop) of an array into ranges of about `BLOCK_BYTES`."""
    stop = shape[0] if stop is None else stop
    step = max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    for i in range(start, stop, step):
        yield i, min(i + step, stop)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a C-contiguous array of this shape."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def check_finite(tensor: Tensor, values: np.ndarray, what: str = "holds") -> None:
    """Refuse infinities and NaNs in C-contiguous `values`, naming the tensor; `what` is a verb."""
    word, mask = _EXPONENT[values.dtype]
    flat = values.reshape(-1).view(word)
    mask = word(mask)
    for i in range(0, flat.size, 1 << 18):  # stays in the processor's cache
        bad = int(np.count_nonzero((flat[i : i + (1 << 18)] & mask) == mask))
        if bad:
            raise UserError(
                f"{tensor.where} {what} non-finite values (NaN or infinity), at least {bad}; "
                "the checkpoint is damaged or training diverged: get another copy"
            )


def fetch(
    tensor: Tensor,
    dtype: np.dtype,
    transpose: bool = False,
    rows: slice = slice(None),
    columns: slice = slice(None),
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Read a part of a tensor in our orientation and dtype, checked to be finite.

    On disk it is (out, in) or (n,); `transpose` returns (in, out) instead. `rows` and `columns` (of
    matrices only) are those of the result, with step 1. The result is C-contiguous; beside it, one
    block of the file is held at a time. `out` is where to put it (None: a new array).
    """
    matrix = len(tensor.shape) == 2
    across, along = (columns, rows) if transpose else (rows, columns)
    start, stop, _ = across.indices(tensor.shape[0])
    left, right = along.indices(tensor.shape[1])[:2] if matrix else (0, 1)
    shape = (stop - start, right - left) if matrix else (stop - start,)
    if out is None:
        out = aligned_empty(shape[::-1] if transpose else shape, dtype)
    for first, last in spans(tensor.shape, tensor.dtype, start, stop):
        block = tensor.rows(first, last)
        check_finite(tensor, block)
        part = block[:, left:right] if matrix else block
        if part.dtype != dtype:
            with np.errstate(over="ignore"):  # the next line says it better
                part = part.astype(dtype)
            check_finite(tensor, np.ascontiguousarray(part), f"does not fit {dtype.name}: makes")
        place = slice(first - start, last - start)
        if transpose:
            transpose_into(out[:, place], part)
        else:
            out[place] = part
    return out


def transpose_into(out: np.ndarray, values: np.ndarray) -> None:
    """out[...] = values.T in tiles: seven times faster, for the processor's cache."""
    for i in range(0, out.shape[0], 64):
        for j in range(0, out.shape[1], 256):
            out[i : i + 64, j : j + 256] = values[j : j + 256, i : i + 64].T
