"""Read a checkpoint folder, in parts; `leapjax.checkpoint` describes the layout."""

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leapjax.checkpoint_writer import FORMAT_VERSION, STORED, Layout, hash_leaves
from leapjax.errors import UserError
from leapjax.model_files import inside, read_json, side_files

_BLOCK_BYTES = 4 << 20
_AGAIN = "copy or convert the checkpoint again"
EDITABLE = ("README.md", "decode.yaml")
"""What a user may edit in a checkpoint: they decide neither weights nor tokens."""


def read_manifest(path: str | os.PathLike) -> dict:
    """A checkpoint's manifest, its own hash verified.

    Raises UserError: missing, damaged, or of a newer format than this leapjax knows.
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
    files, source = manifest.setdefault("files", {}), manifest.setdefault("source", {})
    if not isinstance(source, dict) or not _described(files):
        raise UserError(f"{folder}: manifest.json is damaged (files or source); convert again")
    return manifest


def _described(files: Any) -> bool:
    """Whether the manifest's entry about config and tokenizer files is of the known form."""
    return isinstance(files, dict) and all(
        os.path.basename(name) == name
        and name not in ("", ".", "..")
        and isinstance(entry, dict)
        and type(entry.get("bytes")) is int
        and isinstance(entry.get("sha256"), str)
        for name, entry in files.items()
    )


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

    Opening it checks what is cheap to check: that every file is there and of its length, and the
    hashes of config and tokenizer files. `verify` checks the values too.
    """

    def __init__(self, path: str | os.PathLike):
        """Open a checkpoint."""
        self._folder = Path(path)
        self.manifest = read_manifest(path)
        self.leaves: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        if not (self._folder / "params").is_dir():
            raise UserError(f"{path}: the params folder is missing; copy or convert it again")
        side_files(self._folder)  # the tokenizer reads them: none may lead out of the folder
        for name in self.manifest["files"]:
            if name not in EDITABLE:
                self._check_file(name)
        for name, entry in self.manifest["leaves"].items():
            try:
                if not re.fullmatch(r"\w+(\.\w+)?", name):
                    raise ValueError(name)
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
        try:
            stored = read_json(self._folder, f"params/{name}/.zarray")
            rows = stored["chunks"]["." in name]
            layout = Layout(name, *self.leaves[name], chunk_rows=max(1, int(rows)))
        except (UserError, ValueError, LookupError, TypeError) as e:
            raise UserError(
                f"{self._folder}: params/{name}/.zarray is missing or damaged; {_AGAIN}"
            ) from e
        if stored != layout.zarray():
            raise UserError(
                f"{self._folder}: params/{name} is not what the manifest describes; {_AGAIN}"
            )
        for file in layout.files():
            if os.path.lexists(folder / file):
                size = inside(self._folder, f"params/{name}/{file}").stat().st_size
            else:
                size = -1
            if size != layout.chunk_bytes:
                found = "is missing" if size < 0 else f"has {size} bytes"
                raise UserError(
                    f"{self._folder}: params/{name}/{file} {found}, expected "
                    f"{layout.chunk_bytes} bytes; {_AGAIN}"
                )
        return layout

    def _check_file(self, name: str) -> None:
        """Compare a config or tokenizer file with what the manifest says of it."""
        want, file = self.manifest["files"][name], self._folder / name
        if not os.path.lexists(file):
            raise UserError(f"{self._folder}: {name} is missing; {_AGAIN}")
        try:
            data = inside(self._folder, name).read_bytes()
        except OSError as e:
            raise UserError(f"{file}: can't be read ({e.strerror})") from e
        if len(data) != want["bytes"] or hashlib.sha256(data).hexdigest() != want["sha256"]:
            raise UserError(
                f"{self._folder}: {name} is damaged or was edited (its hash is not the "
                f"manifest's); {_AGAIN}"
            )

    def verify(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Compare every hash of the manifest with what is on disk, in constant memory.

        `progress`: called now and then with (bytes done, bytes in all). Raises UserError: names the
        first damaged file; where a slice has several, all of them.
        """
        for name in self.manifest["files"]:
            self._check_file(name)
        total = sum(t.slices * t.rows * t.row_bytes for t in self._layouts.values())
        done = 0
        for name, layout in self._layouts.items():
            known = self.manifest["leaves"][name].get("sha256")
            if not isinstance(known, list) or len(known) != layout.slices:
                raise UserError(
                    f"{self._folder}: manifest.json has no hashes of {name!r}; {_AGAIN}"
                )
            step = max(1, _BLOCK_BYTES // layout.row_bytes)
            for layer in range(layout.slices):
                digest = hashlib.sha256()
                for start in range(0, layout.rows, step):
                    rows = slice(start, min(start + step, layout.rows))
                    values = self.read(name, (layer, rows) if layout.stacked else rows)
                    digest.update(values.reshape(-1).view(np.uint8).data)
                    done += values.nbytes
                    if progress:
                        progress(done, total)
                if digest.hexdigest() != known[layer]:
                    first, last = layout.file(layer, 0), layout.file(layer, layout.parts - 1)
                    files = first if first == last else f"{first} … {last}"
                    raise UserError(
                        f"{self._folder}: params/{name}/{files} is damaged (its hash is not the "
                        f"manifest's); {_AGAIN}"
                    )
        return done

    def read(self, name: str, index: Any = ()) -> np.ndarray:
        """Read a part of a leaf, and of the files not much more.

        `name`: of the leaf; `index`: an int, a slice of step 1, or a tuple of them. Returns a new
        C-contiguous array in the stored dtype.
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
