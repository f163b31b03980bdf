"""Read a checkpoint folder, in parts; `leapjax.checkpoint` describes the layout."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leapjax.checkpoint_writer import FORMAT_VERSION, STORED, Layout, hash_leaves
from leapjax.errors import UserError
from leapjax.model_files import read_json

_BLOCK_BYTES = 4 << 20


def read_manifest(path: str | os.PathLike) -> dict:
    """A checkpoint's manifest, its own hash verified.

    Raises:
      UserError: missing, damaged, or of a newer format than this leapjax knows.
    """
    folder = Path(path)
    manifest = read_json(folder, "manifest.json")
    version = manifest.get("format_version")
    if manifest.get("format") != "leapjax" or type(version) is not int:
        raise UserError(f"{folder}: manifest.json is not a leapjax manifest; convert again")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{folder}: manifest.json has format version {version}, this leapjax knows "
            f"{FORMAT_VERSION}; install a newer leapjax"
        )
    leaves = manifest.get("leaves")
    if not isinstance(leaves, dict) or manifest.get("weights_sha256") != hash_leaves(leaves):
        raise UserError(f"{folder}: manifest.json is damaged (its hash is wrong); convert again")
    return manifest


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """`np.empty` on a 64-byte boundary: jax on a CPU then takes the memory as it is.

    Otherwise it copies, and at times keeps both: 20 GB instead of 16 for an 8B model.
    """
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    skip = -room.ctypes.data % 64
    return room[skip : skip + size].view(dtype).reshape(shape)


class Reader:
    """Reads any part of a checkpoint's arrays.

    Attributes:
      manifest: the manifest.
      leaves: leaf name -> (shape, dtype).
    """

    def __init__(self, path: str | os.PathLike):
        """Open a checkpoint; checks that every file of it is there and whole.

        Args:
          path: the folder.

        Raises:
          UserError: missing or damaged manifest, missing or truncated array.
        """
        self._folder = Path(path)
        self.manifest = read_manifest(path)
        self.leaves: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        if not (self._folder / "params").is_dir():
            raise UserError(f"{path}: the params folder is missing; copy or convert it again")
        for name, entry in self.manifest["leaves"].items():
            try:
                shape, dtype = tuple(map(int, entry["shape"])), STORED[entry["dtype"]]
            except (KeyError, TypeError, ValueError) as e:
                raise UserError(
                    f"{path}: manifest.json describes parameter {name!r} in a way this leapjax "
                    "does not know; convert again"
                ) from e
            self.leaves[name] = shape, dtype
        self._layouts = {name: self._open(name) for name in self.leaves}

    def _open(self, name: str) -> Layout:
        """The leaf's cut into files, each of them there and whole."""
        folder = self._folder / "params" / name
        again = "copy or convert the checkpoint again"
        try:
            stored = json.loads((folder / ".zarray").read_text("utf-8"))
            rows = stored["chunks"][name.startswith("layers.")]
            layout = Layout(name, *self.leaves[name], chunk_rows=max(1, int(rows)))
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as e:
            raise UserError(
                f"{self._folder}: params/{name}/.zarray is missing or damaged; {again}"
            ) from e
        if stored != layout.zarray():
            raise UserError(
                f"{self._folder}: params/{name} is not what the manifest describes; {again}"
            )
        for file in layout.files():
            try:
                size = (folder / file).stat().st_size
            except OSError:
                size = -1
            if size != layout.chunk_bytes:
                found = "is missing" if size < 0 else f"has {size} bytes"
                raise UserError(
                    f"{self._folder}: params/{name}/{file} {found}, expected "
                    f"{layout.chunk_bytes} bytes; {again}"
                )
        return layout

    def read(self, name: str, index: Any = ()) -> np.ndarray:
        """Read a part of a leaf, and of the files not much more.

        Args:
          name: of the leaf.
          index: an int, a slice of step 1, or a tuple of them.

        Returns:
          A new C-contiguous array in the stored dtype.

        Raises:
          UserError: the files can't be read.
        """
        layout = self._layouts[name]
        index = index if isinstance(index, tuple) else (index,)
        index += (slice(None),) * (len(layout.shape) - len(index))
        ranges = [
            range(n)[i] if isinstance(i, slice) else range(n)[i : i + 1 or None]
            for i, n in zip(index, layout.shape, strict=True)
        ]
        out = aligned_empty([len(r) for r in ranges], layout.dtype)
        if layout.stacked:
            for part, layer in zip(out, ranges[0], strict=True):
                self._read_slice(layout, layer, ranges[1:], part)
        else:
            self._read_slice(layout, 0, ranges, out)
        return out[tuple(0 if not isinstance(i, slice) else slice(None) for i in index)]

    def _read_slice(self, layout: Layout, layer: int, ranges: list[range], out: np.ndarray) -> None:
        rows, inner = ranges[0], ranges[1:]
        width = layout.chunk[layout.stacked + 1 :]
        whole = all(len(r) == n for r, n in zip(inner, width, strict=True))
        # Rows that are wanted whole go straight to their place, others through a buffer.
        step = layout.chunk_rows if whole else max(1, _BLOCK_BYTES // layout.row_bytes)
        at = rows.start
        while at < rows.stop:
            part, first = divmod(at, layout.chunk_rows)
            stop = min(rows.stop, at + step, (part + 1) * layout.chunk_rows)
            place = out[at - rows.start : stop - rows.start]
            block = place if whole else np.empty((stop - at, *width), layout.dtype)
            file = self._folder / "params" / layout.name / layout.file(layer, part)
            try:
                with open(file, "rb", buffering=0) as f:
                    f.seek(first * layout.row_bytes)
                    left = block.reshape(-1).view(np.uint8).data
                    while left and (n := f.readinto(left)):
                        left = left[n:]
            except OSError as e:
                raise UserError(f"{file}: can't be read ({e.strerror})") from e
            if left:
                raise UserError(f"{file}: is truncated; copy or convert the checkpoint again")
            if not whole:
                place[...] = block[(slice(None), *(slice(r.start, r.stop) for r in inner))]
            at = stop
