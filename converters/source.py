"""A hub folder's tensors, whatever format it keeps them in, from headers alone."""

import dataclasses
import json
import os
from pathlib import Path

from leapjax.errors import UserError
from leapjax.model_files import inside

from .safetensors_file import read_header
from .tensor import Tensor, shown
from .torch_file import read_torch

_MAX_INDEX = 256 << 20


@dataclasses.dataclass(frozen=True)
class Source:
    """A hub folder as its headers describe it."""

    folder: Path
    files: tuple[Path, ...]  # in name order
    tensors: dict[str, Tensor]  # file by file, each in the order of its data
    index: str | None  # name of the index file; None: a single file
    notes: tuple[str, ...] = ()  # oddities that break nothing

    @property
    def described(self) -> str:
        """The file that says what should be there, for messages."""
        return self.index or self.files[0].name

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())


def open_source(folder: Path) -> Source:
    """Read the headers of a hub folder's weights: one file of either format, or shards."""
    for stem, suffix, read in (
        ("model", ".safetensors", read_header),
        ("pytorch_model", ".bin", read_torch),
    ):
        single, index = f"{stem}{suffix}", f"{stem}{suffix}.index.json"
        if os.path.lexists(folder / single):
            file = inside(folder, single)
            return Source(folder, (file,), read(file), None)
        if os.path.lexists(folder / index):
            return _sharded(folder, index, suffix, read)
        if shards := sorted(p.name for p in folder.glob(f"{stem}-*{suffix}")):
            raise UserError(f"{folder}: has {shards[0]} but no {index}; fetch the index file")
    raise UserError(
        f"{folder}: no weights here (expected model.safetensors, pytorch_model.bin, or shards "
        "with an index)"
    )


def _sharded(folder: Path, index: str, suffix: str, read) -> Source:
    weight_map, metadata = _read_index(folder, index)
    names = sorted(set(weight_map.values()))
    for name in names:
        # A bare file name: nothing that could lead out of the folder.
        if os.path.basename(name) != name or "\\" in name or not name.endswith(suffix):
            raise UserError(
                f"{index}: shard {shown(name)} is not the name of a {suffix} file in this folder; "
                "an index may not point anywhere else"
            )
        if not os.path.lexists(folder / name):
            tensor = next(t for t, file in weight_map.items() if file == name)
            raise UserError(
                f"{index}: shard {shown(name)} is missing (it holds tensor {shown(tensor)}); "
                "fetch it"
            )
    files = tuple(inside(folder, name) for name in names)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read(file).items():
            if weight_map.get(name) != file.name:
                place = weight_map.get(name)
                says = f"in {shown(place)}" if place else "nowhere"
                raise UserError(f"{tensor.where}: {index} has it {says}; fetch both again")
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors:
            raise UserError(
                f"{file}: tensor {shown(name)} is missing, though {index} has it there; fetch both "
                "again"
            )
    notes = []
    total, found = metadata.get("total_size"), sum(t.nbytes for t in tensors.values())
    if isinstance(total, (int, float)) and total != found:
        notes.append(f"{index} gives a total_size of {total} bytes, the shards hold {found}")
    return Source(folder, files, tensors, index, tuple(notes))


def _read_index(folder: Path, index: str) -> tuple[dict[str, str], dict]:
    file = inside(folder, index)
    try:
        if file.stat().st_size > _MAX_INDEX:
            raise UserError(f"{index}: too large for an index; fetch it again")
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{index}: is not valid JSON; fetch it again") from e
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(v, str) for v in weight_map.values())
    ):
        raise UserError(f"{index}: has no weight_map of tensor to file names; fetch it again")
    metadata = content.get("metadata")
    return weight_map, metadata if isinstance(metadata, dict) else {}
