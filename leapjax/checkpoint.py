"""Checkpoints on disk: a folder with an Orbax checkpoint and everything else a model needs.

    NAME/manifest.json       what is here, with hashes; nothing of the time or machine
    NAME/config.json         the hub's, verbatim; generation_config and tokenizer files beside it
    NAME/params/             Orbax: the pytree of `leapjax.models.param_shapes`
    NAME/params/layers.q/…   Zarr, uncompressed: a chunk is the raw bytes of (part of) a layer

Nothing here knows how the hub calls its tensors (leapjax.converters does).
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leapjax.checkpoint_reader import Reader, aligned_empty, read_manifest
from leapjax.checkpoint_writer import STORED, Writer, hash_leaves, new_folder, refuse_existing
from leapjax.errors import UserError
from leapjax.model_files import is_checkpoint, read_json, to_json

__all__ = [
    "Reader",
    "Writer",
    "aligned_empty",
    "assemble",
    "flatten",
    "hash_params",
    "is_checkpoint",
    "keys_of_name",
    "load_params",
    "model_hash",
    "new_folder",
    "read_config",
    "read_manifest",
    "refuse_existing",
    "save",
    "stored_leaves",
    "unflatten",
    "verify",
]


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

    Special ids that it lacks are those of the tokenizer's files, as far as they tell. Some families
    have keys that only the checkpoint's name or generation_config.json tells (`from_name`,
    `from_generation`; `leapjax.models.families`).

    Raises:
      UserError: no such file, or not a JSON object; another file is needed and damaged.
    """
    from leapjax.models.families import family_module
    from leapjax.models.keys import SPECIAL_IDS

    folder = Path(path)
    raw = read_json(folder, "config.json")
    told = keys_of_name(folder, raw)
    if tell := getattr(family_module(raw), "from_generation", None):
        file = "generation_config.json"
        told |= tell(read_json(folder, file) if os.path.lexists(folder / file) else {})
    lacking = [name for name in SPECIAL_IDS if raw.get(name) is None]
    if lacking:
        from leapjax.text.files import special_ids

        found = special_ids(folder)
        told |= {name: found[name] for name in lacking if name in found}
    return raw | {k: v for k, v in told.items() if v is not None and raw.get(k) is None}


def keys_of_name(folder: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that config.json lacks and that a model's name tells.

    Its name is the hub folder's, the hub's, or the one in config.json. A converted folder is named
    as its user likes: its name says nothing, and the conversion wrote these keys down.

    Args:
      raw: its config.json, parsed.
    """
    from leapjax.models.families import family_module

    tell = getattr(family_module(raw), "from_name", None)
    if tell is None:
        return {}
    names = [raw.get("_name_or_path"), raw.get("name_or_path")]
    if not is_checkpoint(folder):
        home = folder.resolve()
        if home.parent.name == "snapshots":  # the hub's cache: models--ORG--NAME/snapshots/COMMIT
            names.insert(0, home.parent.parent.name)
        names[:0] = [Path(os.path.abspath(folder)).name, home.name]
    found: dict[str, Any] = {}
    for name in names:
        found = (tell(name) if isinstance(name, str) else {}) | found
    return {k: v for k, v in found.items() if raw.get(k) is None}


def model_hash(path: str | os.PathLike) -> str:
    """A hash of a checkpoint's weights: leaf names, shapes, dtypes and values; 64 hex digits.

    It is the manifest's, so it costs nothing; chunk size and versions do not change it.

    Raises:
      UserError: as `read_manifest`.
    """
    return read_manifest(path)["weights_sha256"]


def hash_params(params: Mapping[str, Any], config) -> str:
    """The hash of weights that are in memory: `model_hash` of the checkpoint they would make.

    Every value is read, a layer at a time; where they lie and how layers are arranged does not
    change it. Leaves that no checkpoint has (scales, token frequencies) count too.

    Args:
      params: canonical, or as `leapjax.ops.split.split_layers` leaves them.
    """
    from leapjax.ops.split import slices

    depth = {run.name: run.n_layers for run in config.runs}
    leaves: dict[str, dict] = {}
    for name, layer, values in slices(params, config):
        host = np.ascontiguousarray(values)
        shape = list(host.shape) if layer is None else [depth[name.partition(".")[0]], *host.shape]
        entry = leaves.setdefault(name, {"shape": shape, "dtype": host.dtype.name, "sha256": []})
        entry["sha256"].append(hashlib.sha256(host.reshape(-1).view(np.uint8).data).hexdigest())
    return hash_leaves(leaves)


def verify(path: str | os.PathLike, progress: Callable[[int, int], None] | None = None) -> Reader:
    """Compare every hash of a checkpoint with what is on disk, in constant memory.

    Args:
      progress: called now and then with (bytes done, bytes in all).

    Returns:
      A reader of the checkpoint, which is whole.

    Raises:
      UserError: names the first damaged file; or as `load_params`.
    """
    from leapjax.models import parse_config

    reader = _fitting(path, parse_config(read_config(path)))
    reader.verify(progress)
    return reader


def stored_leaves(path: str | os.PathLike, config) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """A checkpoint's arrays, by name: (shape, dtype). No weight is read.

    Args:
      config: `ModelConfig` that they must fit.

    Raises:
      UserError: as `load_params`.
    """
    return _fitting(path, config).leaves


def load_params(path: str | os.PathLike, config, *, shardings=None) -> dict[str, Any]:
    """Read a checkpoint's weights, as stored.

    Args:
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
    *,
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
            stacked = "." in name
            for layer in range(value.shape[0] if stacked else 1):
                writer.write(name, layer, 0, np.asarray(value[layer] if stacked else value))
        text = to_json(raw_config)
        for name, content in {"config.json": text, **files}.items():
            writer.add_file(name, content)
        return writer.commit({"family": config.family, **(manifest_extra or {})})
