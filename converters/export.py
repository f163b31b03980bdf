"""leapjax checkpoint -> hub folder: the names, dtypes and bits that the original code loads."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from leapjax.checkpoint import Reader, flatten, is_checkpoint, new_folder, read_config
from leapjax.checkpoint_writer import STORED
from leapjax.errors import UserError
from leapjax.model_files import read_json, side_files, to_json
from leapjax.models import param_shapes, parse_config

from .conversion import Progress, Report, require_space
from .mapping import HubTensor, expected, head_name
from .safetensors_file import write_file
from .tensor import shown, spans, transpose_into

SHARD_BYTES = 5 * 10**9
"""Size of a shard, as the hub's own libraries choose it."""


@dataclasses.dataclass(frozen=True)
class _Out:
    """A tensor to write: what it is on the hub, its name and dtype."""

    tensor: HubTensor
    name: str
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.tensor.shape) * self.dtype.itemsize


def to_hub(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    shard_size: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a checkpoint as a hub folder of safetensors, streamed.

    Converting there and back reproduces every tensor bit for bit. Code files
    (`modeling_*.py`) are not part of a checkpoint: get the original ones from the hub.

    Args:
      shard_size: maximum bytes of tensors per file; a single larger tensor may exceed it.
      overwrite: replace an existing model folder at `dst`.
      progress: called now and then with (bytes done, total bytes).

    Raises:
      UserError: damaged checkpoint, or `dst` can't be written. `dst` is then unchanged.
    """
    folder = Path(src)
    if not is_checkpoint(folder):
        raise UserError(f"{src}: is no leapjax checkpoint (no manifest.json)")
    reader = Reader(folder)
    config = parse_config(read_config(folder))
    shapes = flatten(param_shapes(config))
    if {name: shape for name, (shape, _) in reader.leaves.items()} != shapes:
        raise UserError(f"{src}: config.json and params belong to different models; convert again")
    source = reader.manifest.get("source") or {}
    outs = [
        _Out(own, own.name, _dtype(own, reader))
        for own in expected(config, source.get("merged_experts", False))
    ]
    if source.get("tied_head") and config.tie_embeddings:
        outs.append(dataclasses.replace(outs[0], name=head_name(config)))
    for name, (dtype, shape) in source.get("empty_tensors", {}).items():
        outs.append(_Out(HubTensor(name, tuple(shape), ()), name, STORED[dtype]))
    total, done = sum(o.nbytes for o in outs), 0
    require_space(dst, total)
    shards = _cut(outs, shard_size)
    names = [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ] if len(shards) > 1 else ["model.safetensors"]  # fmt: skip
    with new_folder(dst, overwrite) as target:
        for name, shard in zip(names, shards, strict=True):
            entries = {o.name: (o.dtype, o.tensor.shape) for o in shard}
            by_name = {o.name: o for o in shard}
            for step in write_file(
                target / name, entries, lambda n, outs=by_name: _values(outs[n], reader)
            ):
                done += step
                if progress:
                    progress(done, total)
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": total},
                "weight_map": {
                    o.name: name for name, shard in zip(names, shards, strict=True) for o in shard
                },
            }
            (target / "model.safetensors.index.json").write_bytes(to_json(index))
        for name, file in side_files(folder).items():
            (target / name).write_bytes(file.read_bytes())
        stored = reader.manifest.get("dtype")
        if source.get("dtype", stored) != stored:
            # Converted to another dtype: the config has to say so, or the original code
            # would widen or narrow the weights again.
            said = read_json(folder, "config.json")
            said |= {key: stored for key in ("torch_dtype", "dtype") if key in said}
            (target / "config.json").write_bytes(to_json(said))
    return Report(
        family=config.family,
        config=config,
        files=tuple(names),
        tensors=len(outs),
        source_bytes=total,
        param_count=sum(math.prod(s) for s in shapes.values()),
        dtype=str(stored),
        target_bytes=total,
        weights_sha256=reader.manifest["weights_sha256"],
    )


def _cut(outs: list[_Out], shard_size: int) -> list[list[_Out]]:
    """Tensors, in order, into shards of at most `shard_size` bytes."""
    shards: list[list[_Out]] = []
    room = -1
    for out in outs:
        if not shards or out.nbytes > room:
            shards.append([])
            room = shard_size
        shards[-1].append(out)
        room -= out.nbytes
    return shards


def _dtype(own: HubTensor, reader: Reader) -> np.dtype:
    """The dtype of a hub tensor: that of the leaves it is made of."""
    dtypes = {row.name: reader.leaves[row.name][1] for row in own.rows}
    if len({*dtypes.values()}) > 1:
        said = ", ".join(f"{name} is {dtype.name}" for name, dtype in dtypes.items())
        raise UserError(
            f"{shown(own.name)} is one tensor on the hub, but {said}; store them in one dtype"
        )
    return dtypes[own.rows[0].name]


def _values(out: _Out, reader: Reader) -> Iterator[np.ndarray]:
    """A tensor's values in the hub's orientation, in pieces along its first axis."""
    for row, expert in out.tensor.places():
        before = tuple(i for i in (out.tensor.layer, expert) if i is not None)
        shape = row.shape[len(before) :]
        if row.transposed:
            turned = np.empty(shape[::-1], out.dtype)
            # A part of an expert costs as much to read as all of it.
            for start, stop in [(0, shape[0])] if expert is not None else spans(shape, out.dtype):
                rows = reader.read(row.name, (*before, slice(start, stop)))
                transpose_into(turned[:, start:stop], rows)
            yield turned
        elif before:
            yield reader.read(row.name, before)
        else:
            for start, stop in spans(shape, out.dtype):
                yield reader.read(row.name, slice(start, stop))
