"""Write a checkpoint piece by piece; `leapjax.checkpoint` describes the layout.

Orbax itself writes an array in one go, so a stacked leaf would have to be in memory whole.
`Writer` writes the same files piece by piece: the chunks are plain bytes, so a piece is a
plain write at the right place. Any Orbax restores the result (tests/test_checkpoint.py).
Source: Orbax's on-disk format without OCDBT (`_METADATA`, Zarr v2 arrays).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from leapjax.errors import UserError
from leapjax.model_files import is_checkpoint

FORMAT_VERSION = 1
CHUNK_BYTES = 64 << 20
"""The most bytes of one file of an array: what a reader of a small part has to read."""

_ZARR_DTYPES = {
    np.dtype(np.float32): "<f4",
    np.dtype(np.float16): "<f2",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
}
STORED = {d.name: d for d in _ZARR_DTYPES}
"""The dtypes that weights can be stored in, by name."""


def hash_leaves(leaves: dict) -> str:
    """The hash that identifies weights, from the manifest's entry about them."""
    text = json.dumps(leaves, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Layout:
    """How one leaf is cut into files: a layer each, and large ones along their rows too.

    Attributes:
      name: of the leaf.
      shape: of the leaf.
      dtype: of the leaf.
      slices: L for a stacked leaf, else 1.
      rows: length of a slice's first axis.
      row_bytes: bytes of one row.
      chunk_rows: rows per file.
      parts: files per slice.
      chunk: shape of one file's array, as Zarr wants it.
      chunk_bytes: bytes of one file.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, chunk_rows: int | None = None
    ):
        """Take the cut given, or choose one: even, where a few more files allow it."""
        self.name, self.shape, self.dtype = name, shape, dtype
        self.stacked = "." in name
        inner = shape[1:] if self.stacked else shape
        self.slices = shape[0] if self.stacked else 1
        self.rows = inner[0]
        self.row_bytes = math.prod(inner[1:]) * dtype.itemsize
        if chunk_rows is None:
            chunk_rows = self._cut()
        self.chunk_rows = chunk_rows
        self.parts = math.ceil(self.rows / chunk_rows)
        self.chunk = (1,) * self.stacked + (chunk_rows, *inner[1:])
        self.chunk_bytes = chunk_rows * self.row_bytes

    def _cut(self) -> int:
        least = max(1, math.ceil(self.rows * self.row_bytes / CHUNK_BYTES))
        even = [n for n in range(least, 2 * least + 1) if self.rows % n == 0]
        return math.ceil(self.rows / (even[0] if even else least))

    def file(self, layer: int, part: int) -> str:
        """Name of a chunk's file within the leaf's folder."""
        first = [layer] if self.stacked else []
        return ".".join(map(str, [*first, part, *[0] * (len(self.chunk) - len(first) - 1)]))

    def files(self) -> Iterator[str]:
        """Names of all chunk files."""
        for layer in range(self.slices):
            for part in range(self.parts):
                yield self.file(layer, part)

    def zarray(self) -> dict[str, Any]:
        """The Zarr v2 description of the array."""
        return {
            "chunks": list(self.chunk),
            "compressor": None,
            "dimension_separator": ".",
            "dtype": _ZARR_DTYPES[self.dtype],
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": list(self.shape),
            "zarr_format": 2,
        }


class _Slice:
    """Progress of one slice: the next row, the hash so far, the open file."""

    def __init__(self):
        self.row, self.hash = 0, hashlib.sha256()
        self.file: BinaryIO | None = None


class Writer:
    """Writes a checkpoint piece by piece; it appears whole, at `commit`, or not at all.

    Use as a context manager. Within a slice (a layer of a stacked leaf, or a whole other
    leaf) rows come in order; slices come in any order.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        leaves: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        overwrite: bool = False,
    ):
        """Describe the checkpoint; nothing is written before the `with` statement.

        `leaves`: leaf name -> (shape, dtype float32, bfloat16 or float16); `overwrite`: replace a
        checkpoint that is there already.
        """
        self._layouts = {name: Layout(name, *leaves[name]) for name in leaves}
        self._slices = {(n, i): _Slice() for n, t in self._layouts.items() for i in range(t.slices)}
        self._files: dict[str, dict] = {}
        self._manager = new_folder(path, overwrite)
        self._committed = False

    def __enter__(self) -> Writer:
        """Create the hidden folder that the pieces go to."""
        self._folder = self._manager.__enter__()
        try:
            for name, layout in self._layouts.items():
                folder = self._folder / "params" / name
                folder.mkdir(parents=True)
                _write_json(folder / ".zarray", layout.zarray())
        except BaseException as e:
            self._manager.__exit__(type(e), e, e.__traceback__)
            raise
        return self

    def __exit__(self, kind, error, trace) -> bool | None:
        """Rename the folder into place if it was committed, else remove it."""
        for progress in self._slices.values():
            if progress.file:
                progress.file.close()
        if kind is None and not self._committed:
            error = RuntimeError("checkpoint writer left without commit()")
            kind = RuntimeError
            self._manager.__exit__(kind, error, None)
            raise error
        return self._manager.__exit__(kind, error, trace)

    def write(self, name: str, layer: int, start: int, values: np.ndarray) -> None:
        """Write rows of one slice.

        `name`: leaf; `layer`: which slice; 0 for a leaf that isn't stacked; `start`: first row; the
        next one not yet written; `values`: (rows, ...) of the slice, in the leaf's dtype.
        """
        layout, progress = self._layouts[name], self._slices[name, layer]
        inner = layout.shape[1 + layout.stacked :]
        if (
            start != progress.row
            or values.shape[1:] != inner
            or start + len(values) > layout.rows
            or values.dtype != layout.dtype
        ):
            raise ValueError(f"{name}[{layer}]: rows {start} + {values.shape} don't fit")
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        progress.hash.update(data)
        progress.row += len(values)
        while data:
            part, row = divmod(start, layout.chunk_rows)
            count = min(layout.chunk_rows - row, len(data) // layout.row_bytes)
            if row == 0:
                target = self._folder / "params" / name / layout.file(layer, part)
                progress.file = open(target, "wb", buffering=0)  # noqa: SIM115 - kept open
            assert progress.file
            piece, data = data[: count * layout.row_bytes], data[count * layout.row_bytes :]
            while piece:
                piece = piece[progress.file.write(piece) :]
            start += count
            if start % layout.chunk_rows == 0 or start == layout.rows:
                # Zarr pads the last chunk to full size. Only here, at the end: a file that
                # a crash cut short must look short.
                progress.file.truncate(layout.chunk_bytes)
                progress.file.close()
                progress.file = None

    def add_file(self, name: str, content: bytes | Path) -> None:
        """Add a config or tokenizer file, verbatim.

        `name`: bare file name; `content`: its bytes, or the file to copy.
        """
        if os.path.basename(name) != name or name in ("manifest.json", "params", ".", ".."):
            raise ValueError(f"bad file name {name!r}")
        data = content if isinstance(content, bytes) else content.read_bytes()
        (self._folder / name).write_bytes(data)
        self._files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def commit(self, extra: Mapping[str, Any]) -> str:
        """Write the metadata; the folder appears when the `with` statement ends.

        `extra`: further keys of the manifest (family, source).
        """
        for (name, layer), progress in self._slices.items():
            if progress.row != self._layouts[name].rows:
                raise ValueError(f"{name}[{layer}]: only {progress.row} rows were written")
        leaves = {
            name: {
                "shape": list(t.shape),
                "dtype": t.dtype.name,
                "sha256": [self._slices[name, i].hash.hexdigest() for i in range(t.slices)],
            }
            for name, t in self._layouts.items()
        }
        dtypes = {t.dtype.name for t in self._layouts.values()}
        versions = {p: _version(p) for p in ("leapjax", "jax", "orbax-checkpoint")}
        manifest = {
            "format": "leapjax",
            "format_version": FORMAT_VERSION,
            **extra,
            "param_count": sum(math.prod(t.shape) for t in self._layouts.values()),
            "dtype": dtypes.pop() if len(dtypes) == 1 else "mixed",
            "weights_sha256": hash_leaves(leaves),
            "versions": versions,
            "files": dict(sorted(self._files.items())),
            "leaves": leaves,
        }
        _write_json(self._folder / "params" / "_METADATA", _orbax_metadata(list(leaves)))
        # Object stores have no rename; Orbax looks for this file there.
        (self._folder / "params" / "commit_success.txt").write_text("complete\n")
        _write_json(self._folder / "manifest.json", manifest, indent=1)
        self._committed = True
        return manifest["weights_sha256"]


def _orbax_metadata(names: list[str]) -> dict[str, Any]:
    """Orbax's description of the tree.

    The leaves are declared as numpy arrays: restored without a target they come back as
    such on any machine, with a target as sharded jax arrays.
    """
    tree = {}
    for name in names:
        keys = name.split(".")
        tree[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    return {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _write_json(file: Path, value: Any, indent: int | None = None) -> None:
    file.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Create a folder whole or not at all: a hidden sibling, renamed at the end.

    `overwrite`: replace a model's folder that is there already. Yields the hidden folder to fill.
    Any exception, Ctrl-C included, removes it.
    """
    target = Path(os.path.abspath(path))
    refuse_existing(target, overwrite)
    made = [p for p in target.parents if not p.exists()]
    hidden = target.parent / f".{target.name}.tmp-{secrets.token_hex(4)}"
    try:
        hidden.mkdir(parents=True)
        yield hidden
        if os.path.lexists(target):
            refuse_existing(target, overwrite)
            old = target.parent / f".{target.name}.old-{secrets.token_hex(4)}"
            target.rename(old)
            try:
                hidden.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            hidden.rename(target)
    except BaseException as e:
        shutil.rmtree(hidden, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(e, OSError):
            raise UserError(f"{path}: can't be written ({e.strerror or e})") from e
        raise


def refuse_existing(path: str | os.PathLike, overwrite: bool) -> None:
    """Raise unless `path` is free, or `overwrite` and a model's folder."""
    if os.fspath(path) in ("", "-"):  # "-" is standard output to other commands
        raise UserError(
            f"{os.fspath(path)!r} is no folder's name, and a model can't go to standard output; "
            "name a folder (./- for one that is called so)"
        )
    target = Path(path)
    if not os.path.lexists(target):
        return
    if target.is_symlink():
        raise UserError(
            f"{path}: is a symbolic link, and --overwrite won't remove it; name the folder that it "
            "leads to, or another one"
        )
    if not overwrite:
        raise UserError(f"{path}: exists already; choose another folder or add --overwrite")
    # --overwrite removes a folder: be sure that it is one of ours, not somebody's home.
    if not ((target / "config.json").is_file() or is_checkpoint(target)):
        raise UserError(f"{path}: is not a model's folder, so --overwrite won't remove it")
