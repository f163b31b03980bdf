"""Checkpoints on disk: a folder with an Orbax checkpoint and everything else a model needs.

    NAME/manifest.json       what is here, with hashes; nothing of the time or machine
    NAME/config.json         the hub's, verbatim; generation_config and tokenizer files beside it
    NAME/params/             Orbax: the pytree of `leapjax.models.param_shapes`
    NAME/params/layers.q/…   Zarr, uncompressed: a chunk is the raw bytes of (part of) a layer

Nothing here knows how the hub calls its tensors (leapjax.converters does).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leapjax.checkpoint_writer import (
    FORMAT_VERSION,
    STORED,
    Layout,
    Writer,
    hash_leaves,
    is_checkpoint,
    new_folder,
    refuse_existing,
)
from leapjax.errors import UserError

__all__ = [
    "Reader",
    "Writer",
    "aligned_empty",
    "assemble",
    "flatten",
    "is_checkpoint",
    "load_params",
    "model_hash",
    "new_folder",
    "read_config",
    "read_manifest",
    "refuse_existing",
    "save",
    "stored_leaves",
    "unflatten",
]

_MAX_JSON = 64 << 20
_BLOCK_BYTES = 4 << 20


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as {"layers.q": leaf}, in the order of the tree."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    out: dict[str, Any] = {}
    for name, value in leaves.items():
        *parents, last = name.split(".")
        node = out
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return out


def read_config(path: str | os.PathLike) -> dict:
    """The `config.json` of a checkpoint or hub folder, parsed.

    Raises:
      UserError: no such file, or not a JSON object.
    """
    return _read_json(Path(path), "config.json")


def read_manifest(path: str | os.PathLike) -> dict:
    """A checkpoint's manifest, its own hash verified.

    Raises:
      UserError: missing, damaged, or of a newer format than this leapjax knows.
    """
    folder = Path(path)
    manifest = _read_json(folder, "manifest.json")
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


def model_hash(path: str | os.PathLike) -> str:
    """A hash of the weights: leaf names, shapes, dtypes and values; 64 hex digits.

    It is the manifest's, so it costs nothing; chunk size and versions do not change it.

    Raises:
      UserError: as `read_manifest`.
    """
    return read_manifest(path)["weights_sha256"]


def _read_json(folder: Path, name: str) -> dict:
    file = folder / name
    try:
        if file.stat().st_size > _MAX_JSON:
            raise UserError(f"{file}: too large to be genuine")
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"{folder}: {name} is missing; is this a model's folder?") from e
    except OSError as e:
        raise UserError(f"{file}: can't be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file}: is not valid JSON; fetch or convert it again") from e
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object")
    return value


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


def stored_leaves(path: str | os.PathLike, config) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """A checkpoint's arrays, by name: (shape, dtype). No weight is read.

    Args:
      path: the folder.
      config: `ModelConfig` that they must fit.

    Raises:
      UserError: as `load_params`.
    """
    return _fitting(path, config).leaves


def load_params(path: str | os.PathLike, config, shardings=None) -> dict[str, Any]:
    """Read a checkpoint's weights, as stored.

    Args:
      path: the folder.
      config: `ModelConfig` that the weights must fit.
      shardings: None (default device), one sharding for all leaves, or a pytree of them
        like `param_shapes(config)`. Each device's part is read by itself, once.

    Returns:
      The nested dict of `param_shapes(config)` with jax arrays in the stored dtype.

    Raises:
      UserError: damaged checkpoint, or one of another shape than `config`.
    """
    reader = _fitting(path, config)
    return assemble(reader.leaves, lambda name, index: reader.read(name, index), shardings)


def _fitting(path: str | os.PathLike, config) -> Reader:
    """A reader of a checkpoint whose arrays are those of a model of this shape."""
    from leapjax.models import param_shapes

    reader = Reader(path)
    shapes = flatten(param_shapes(config))
    for name in [*shapes, *reader.leaves]:
        if name not in shapes or name not in reader.leaves:
            has, lacks = ("config.json", "params")[:: 1 if name in shapes else -1]
            raise UserError(f"{path}: {has} has parameter {name!r}, {lacks} doesn't; convert again")
        if shapes[name] != reader.leaves[name][0]:
            raise UserError(
                f"{path}: parameter {name!r} has shape {reader.leaves[name][0]}, config.json calls "
                f"for {shapes[name]}; config and weights belong to different models"
            )
    return reader


def assemble(leaves: Mapping[str, tuple[tuple[int, ...], np.dtype]], read, shardings):
    """Make the params tree of jax arrays, each device's part read by itself.

    Args:
      leaves: leaf name -> (shape, dtype).
      read: (leaf name, tuple of slices) -> numpy array.
      shardings: as for `load_params`.

    Returns:
      Nested dict of jax arrays.
    """
    import jax

    by_name: dict[str, Any]
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        by_name = dict.fromkeys(leaves, shardings)
    else:
        by_name = flatten(shardings)
    if set(by_name) != set(leaves):
        raise UserError("shardings: expected a tree like the model's parameters")
    out = {}
    # Largest first: the copy on its way to the device then finds the most room.
    for name in sorted(leaves, key=lambda n: -math.prod(leaves[n][0])):
        shape = leaves[name][0]
        if by_name[name] is None:
            out[name] = jax.device_put(read(name, (slice(None),) * len(shape)))
            continue
        parts: dict[Any, np.ndarray] = {}  # replicas of a part read it once

        def part(index, name=name, shape=shape, parts=parts):
            key = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
            if key not in parts:
                parts[key] = read(name, tuple(slice(*pair) for pair in key))
            return parts[key]

        out[name] = jax.make_array_from_callback(shape, by_name[name], part)
    return unflatten({name: out[name] for name in leaves})


def save(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    raw_config: dict,
    files: Mapping[str, bytes | Path],
    manifest_extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> str:
    """Write weights that are in memory, in the same layout as a conversion.

    Args:
      path: folder to create.
      params: tree of `param_shapes`; jax (addressable here) or numpy arrays.
      raw_config: the hub's config, written as `config.json` unless `files` has one.
      files: tokenizer files: name -> content.
      manifest_extra: further keys of the manifest.
      overwrite: replace a checkpoint that is there already.

    Returns:
      The hash of the weights.

    Raises:
      UserError: params don't fit the config, or the folder can't be written.
    """
    from leapjax.models import param_shapes, parse_config

    config = parse_config(raw_config)
    flat, shapes = flatten(params), flatten(param_shapes(config))
    if {n: tuple(v.shape) for n, v in flat.items()} != shapes:
        wrong = [n for n in {*flat, *shapes} if n not in flat or shapes.get(n) != flat[n].shape]
        raise UserError(f"{path}: parameter {min(wrong)!r} does not fit the config; not saved")
    leaves = {n: (shapes[n], np.dtype(flat[n].dtype)) for n in shapes}
    for name, (_, dtype) in leaves.items():
        if dtype not in STORED.values():
            raise UserError(
                f"{path}: parameter {name!r} is {dtype.name}; expected one of {', '.join(STORED)}"
            )
    with Writer(path, leaves, overwrite) as writer:
        for name, value in flat.items():
            stacked = name.startswith("layers.")
            for layer in range(value.shape[0] if stacked else 1):
                writer.write(name, layer, 0, np.asarray(value[layer] if stacked else value))
        text = (json.dumps(raw_config, indent=2) + "\n").encode()
        for name, content in {"config.json": text, **files}.items():
            writer.add_file(name, content)
        return writer.commit({"family": config.family, **(manifest_extra or {})})
