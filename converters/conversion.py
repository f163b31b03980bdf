"""Hub folder -> leapjax checkpoint, one tensor at a time."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from leapjax.checkpoint import Writer, is_checkpoint, keys_of_name, read_config, refuse_existing
from leapjax.checkpoint_writer import STORED
from leapjax.errors import UserError
from leapjax.model_files import read_json, side_files, to_json
from leapjax.models import ModelConfig, parse_config

from .mapping import Piece, Plan, make_plan
from .source import Source, open_source
from .tensor import Tensor, fetch, spans

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What is in a hub folder, and what a conversion makes of it.

    Attributes:
      files: weight files.
      tensors: number of tensors in them.
      source_bytes: bytes of those tensors.
      param_count: number of weights in the result.
      dtype: of the result ("mixed" if leaves differ).
      target_bytes: bytes the result's arrays take on disk.
      notes: oddities that break nothing.
      weights_sha256: hash of the weights written; None for a mere check.
    """

    family: str
    config: ModelConfig
    files: tuple[str, ...]
    tensors: int
    source_bytes: int
    param_count: int
    dtype: str
    target_bytes: int
    notes: tuple[str, ...] = ()
    weights_sha256: str | None = None


def open_model(src: str | os.PathLike, dtype: object = None) -> tuple[Source, ModelConfig, Plan]:
    """Read a hub folder's config and headers, and match them.

    Args:
      dtype: of the result; None keeps what is stored.

    Raises:
      UserError: anything that headers show to be wrong.
    """
    folder = Path(src)
    if not folder.is_dir():
        raise UserError(f"{src}: no such folder")
    if is_checkpoint(folder):
        raise UserError(
            f"{src}: is a leapjax checkpoint already; use it as it is, or turn it into a hub "
            "folder with --to-hub"
        )
    config = parse_config(read_config(folder))
    source = open_source(folder)
    return source, config, make_plan(source, config, dtype)


def check(
    src: str | os.PathLike, dst: str | os.PathLike | None = None, *, dtype: object = None
) -> Report:
    """Check everything that can be checked without reading a weight.

    This covers family, config, index, every tensor's name, shape, dtype and location, and side
    files; with `dst`, also whether the disk has room.

    Args:
      dst: where a conversion would go, or None.
      dtype: of the result; None keeps what is stored.

    Raises:
      UserError: the first problem found.
    """
    source, config, plan = open_model(src, dtype)
    side_files(source.folder)
    if dst is not None:
        require_space(dst, plan.nbytes)
    return _report(source, config, plan)


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    dtype: object = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Convert a hub folder to a leapjax checkpoint.

    Memory holds at most one source tensor at a time (two when widening the dtype) and a few
    megabytes.

    Args:
      dtype: "bfloat16", "float32" or "float16"; None keeps what is stored.
      overwrite: replace an existing model folder at `dst`.
      progress: called now and then with (bytes done, total bytes).

    Raises:
      UserError: the source is damaged or no known model, or `dst` can't be written. `dst`
        is then unchanged.
    """
    refuse_existing(dst, overwrite)
    source, config, plan = open_model(src, dtype)
    _refuse_nesting(source.folder, Path(dst))
    sides = side_files(source.folder)
    require_space(dst, plan.nbytes)
    total, done = sum(p.tensor.nbytes for ps in plan.pieces.values() for p in ps), 0
    work = _in_order(plan)
    with Writer(dst, plan.leaves, overwrite) as writer, _Hasher(source.files) as hasher:
        for piece in work:
            for step in _copy(piece, plan.leaves[piece.leaf][1], writer):
                done += step
                if progress:
                    progress(done, total)
        if plan.tied_head is not None:
            require_tied(plan.pieces["embed"][0].tensor, plan.tied_head)
        for name, content in (sides | _named_config(source.folder)).items():
            writer.add_file(name, content)
        stored = sorted({p.tensor.dtype.name for p in work})
        empty = {
            t.name: [t.dtype.name, [*t.shape]]
            for t in plan.ignored
            if 0 in t.shape and t.dtype in STORED.values()
        }
        digest = writer.commit(
            {
                "family": config.family,
                "source": {
                    "files": hasher.result(),
                    "dtype": stored[0] if len(stored) == 1 else "mixed",
                    "merged_experts": plan.merged,
                    "tied_head": plan.tied_head is not None,
                    **({"empty_tensors": empty} if empty else {}),
                },
            }
        )
    return dataclasses.replace(_report(source, config, plan), weights_sha256=digest)


def _in_order(plan: Plan) -> list[Piece]:
    """All pieces as they lie in the source, but a layer's experts together and by number."""
    groups: dict[tuple[str, int | None], list[Piece]] = {}
    for pieces in plan.pieces.values():
        for piece in pieces:
            groups.setdefault((piece.leaf, piece.layer), []).append(piece)
    order = sorted(groups.values(), key=lambda g: (g[0].tensor.file, g[0].tensor.offset))
    return [piece for group in order for piece in group]


def _copy(piece: Piece, dtype: np.dtype, writer: Writer):
    """Read one piece and write it to its place; yields source bytes done."""
    tensor, layer = piece.tensor, piece.layer or 0
    if piece.transpose:
        values = fetch(tensor, dtype, transpose=True)
        if piece.expert is None:
            writer.write(piece.leaf, layer, 0, values)
        else:
            writer.write(piece.leaf, layer, piece.expert, values[None])
        yield tensor.nbytes
        return
    for start, stop in spans(tensor.shape, tensor.dtype):
        rows = fetch(tensor, dtype, rows=slice(start, stop))
        writer.write(piece.leaf, layer, start, rows)
        yield rows.size * tensor.dtype.itemsize


def _named_config(folder: Path) -> dict[str, bytes]:
    """The config.json to write where only the folder's name tells some key; else nothing."""
    raw = read_json(folder, "config.json")
    named = keys_of_name(folder, raw)
    return {"config.json": to_json(raw | named)} if named else {}


def require_tied(embed: Tensor, head: Tensor) -> None:
    """Refuse a head that differs from the embedding it is tied to."""
    for start, stop in spans(embed.shape, embed.dtype):
        word = np.dtype(f"u{embed.dtype.itemsize}")
        a, b = embed.rows(start, stop), head.rows(start, stop)
        if not np.array_equal(a.view(word), b.view(word)):
            raise UserError(
                f"{head.where} differs from the embedding, but config.json ties the two; correct "
                "the config (weight_tying or tie_word_embeddings)"
            )


def _report(source: Source, config: ModelConfig, plan: Plan) -> Report:
    dtypes = {dtype.name for _, dtype in plan.leaves.values()}
    notes = list(source.notes)
    for key, value in keys_of_name(source.folder, read_json(source.folder, "config.json")).items():
        notes.append(f"{key} {value} is that of the model's name; config.json lacks the key")
    if plan.ignored:
        notes.append(
            f"{len(plan.ignored)} buffers or empty tensors that the config determines are left out"
        )
    if plan.tied_head is not None:
        notes.append(f"{plan.tied_head.name} repeats the tied embedding")
    return Report(
        family=config.family,
        config=config,
        files=tuple(f.name for f in source.files),
        tensors=len(source.tensors),
        source_bytes=source.nbytes,
        param_count=plan.param_count,
        dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
        target_bytes=plan.nbytes,
        notes=tuple(notes),
    )


def require_space(dst: str | os.PathLike, nbytes: int) -> None:
    """Refuse to start what the disk has no room for, where `dst` would be."""
    place = Path(os.path.abspath(dst)).parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise UserError(
            f"{dst}: needs {nbytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; make room "
            "or choose another place"
        )


def _refuse_nesting(src: Path, dst: Path) -> None:
    a, b = src.resolve(), dst.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UserError(f"{dst}: lies in the source folder or holds it; choose another folder")


class _Hasher:
    """Hashes the source files in a thread beside the conversion, which reads them too."""

    def __init__(self, files: tuple[Path, ...]):
        self._files = files
        self._stop = threading.Event()

    def __enter__(self) -> _Hasher:
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._work = [self._pool.submit(hash_file, f, self._stop) for f in self._files]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def result(self) -> dict[str, dict]:
        return {
            file.name: {"bytes": file.stat().st_size, "sha256": future.result()}
            for file, future in zip(self._files, self._work, strict=True)
        }


def hash_file(file: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file's bytes; stops early, with a meaningless value, once `stop` is set."""
    digest, buffer = hashlib.sha256(), bytearray(1 << 20)
    try:
        with open(file, "rb", buffering=0) as f:
            while (n := f.readinto(buffer)) and not (stop and stop.is_set()):
                digest.update(memoryview(buffer)[:n])
    except OSError as e:
        raise UserError(f"{file.name}: can't be read ({e.strerror})") from e
    return digest.hexdigest()
