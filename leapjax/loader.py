"""`load`: load a model from a converted checkpoint, a hub folder, or a hub id."""

import functools
import importlib.resources
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leapjax import checkpoint, models
from leapjax.config import QUANTIZATIONS
from leapjax.config.check import shown
from leapjax.config.resolve import checkpoint_options
from leapjax.errors import UserError
from leapjax.fit import Auto, choose
from leapjax.lm import LM
from leapjax.models.config import ModelConfig
from leapjax.models.quantize import quantize as quantized
from leapjax.ops import hardware
from leapjax.ops.split import split_layers
from leapjax.progress import busy
from leapjax.serve.lane import Replica
from leapjax.sharding import MeshShape, Placement, check, parse, placements
from leapjax.text import load_codec

DTYPES = ("float32", "bfloat16")


EMBEDDED = ("wordproblems", "dependency")  # models inside the package, named after their tasks


def embedded_path(name: str = EMBEDDED[0]) -> Path:
    """Folder of a small model inside the package.

    Args:
      name: one of `EMBEDDED`; the first is loaded by default.
    """
    return Path(str(importlib.resources.files("leapjax") / "data" / name))


def located(path: str | Path | None) -> Path:
    """A model's folder: of the embedded one for None, or by its name where no such folder exists.

    Args:
      path: as in `load`; a hub id comes back as it is.
    """
    if path is None:
        return embedded_path()
    if str(path) in EMBEDDED and not Path(path).exists():
        return embedded_path(str(path))
    return Path(path)


def load(
    path: str | Path | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    quantize: str | None = None,
    mesh: str | MeshShape | Auto | None = None,
    template_options: Mapping[str, Any] | None = None,
):
    """Load a model: a converted checkpoint, a hub folder, or a hub id.

    Args:
      path: folder, `org/name`, or the name of an embedded model; None loads the default one.
      dtype: compute type, `float32` or `bfloat16`; None is float32 on CPU and bfloat16 on
        accelerators. Weights stay as stored.
      revision: for a hub id, the branch, tag or commit.
      quantize: `int8` quantises the matrices to 8 bits after loading: half of bfloat16's memory,
        slightly worse logits.
      mesh: mesh to shard the model over, such as `data=2,tensor=4` (`leapjax.sharding`); None is
        the default device. `auto`, or an `Auto` that describes the workload, chooses a mesh that
        fits according to compiled memory analysis (`leapjax.fit`).
      template_options: variables of the chat template, such as `{"enable_thinking": True}`.

    Returns:
      An `LM`.

    Raises:
      UserError: the checkpoint does not exist or is broken (docs/contract.md, Errors).
    """
    if path is not None and not isinstance(path, str | Path):
        raise UserError(f"path is {shown(path)}; expected a folder or a hub id")
    if mesh is not None and not isinstance(mesh, str | MeshShape | Auto):
        raise UserError(f"mesh is {shown(mesh)}; expected a text such as data=2,tensor=4")
    if dtype is not None and str(dtype) not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise UserError(f"quantize is {quantize!r}; choose one of {', '.join(QUANTIZATIONS)}")
    _check_embedded(path)
    with busy(f"loading {path or 'the embedded model'}"):
        return _load(
            path, dtype or hardware.defaults().dtype, revision, quantize, mesh, template_options
        )


def _check_embedded(path: str | Path | None) -> None:
    if path is None and not checkpoint.is_checkpoint(embedded_path()):
        raise UserError(
            "this installation has no embedded model; name a checkpoint (--model PATH; leapjax "
            "convert makes one), or install a released wheel"
        )


def model_config(path: str | Path | None, revision: str | None = None) -> ModelConfig:
    """The shape and special ids of a model, without its weights.

    Args:
      path: as in `load`; for a hub id, only config and tokenizer files are fetched.
      revision: as in `load`.

    Raises:
      UserError: no such model, or its config can't be used.
    """
    _check_embedded(path)
    folder = located(path)
    if not checkpoint.is_checkpoint(folder):
        from leapjax import converters

        folder = converters.resolve(str(folder), revision, weights=False)
    return models.parse_config(checkpoint.read_config(folder))


class _Source(NamedTuple):
    """Where a model's weights come from: a folder, its config, and how its weights are read."""

    folder: Path
    config: ModelConfig
    read: Callable[..., Any]
    stored: Callable[[], Mapping[str, tuple[tuple[int, ...], Any]]]
    model_hash: str | None


def _source(path, revision: str | None) -> _Source:
    folder = located(path)
    if checkpoint.is_checkpoint(folder):
        config = models.parse_config(checkpoint.read_config(folder))
        read, stored = checkpoint.load_params, checkpoint.stored_leaves
        model_hash = checkpoint.model_hash(folder)  # from the manifest
    else:
        # The only import of the converters, needed only for hub formats.
        from leapjax import converters

        folder = converters.resolve(str(folder), revision=revision)
        config = models.parse_config(checkpoint.read_config(folder))
        read, stored, model_hash = converters.load_hub, converters.stored_leaves, None
    read, stored = (functools.partial(f, folder, config) for f in (read, stored))
    return _Source(folder, config, read, stored, model_hash)


def weight_bytes(path: str | Path | None, revision: str | None = None) -> int:
    """Bytes of a model's weights as they are loaded; none of them is read.

    `path` and `revision` as in `load`.

    Raises:
      UserError: as `load`.
    """
    leaves = stored_leaves(path, revision).values()
    return sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in leaves)


def stored_leaves(
    path: str | Path | None, revision: str | None = None
) -> Mapping[str, tuple[tuple[int, ...], Any]]:
    """A model's weights as they are loaded, leaf name -> (shape, dtype); none of them is read."""
    return _source(path, revision).stored()


def _load(path, dtype, revision, quantize, mesh, template_options) -> LM:
    if mesh == "auto":
        mesh = Auto()
    shape = parse(mesh) if isinstance(mesh, str) else mesh
    folder, config, read, stored, model_hash = _source(path, revision)
    defaults = checkpoint_options(path, config)
    codec = load_codec(folder, config, template_options)
    if isinstance(shape, Auto):
        shape = choose(shape, stored, config, dtype=str(dtype), quantize=quantize)
    if shape is not None:
        check(shape, config)
    places: list[Placement | None] = [None] if shape is None else [*placements(shape)]
    replicas = []
    for place in places:
        # Read each device's shard straight from the files; no host holds all weights.
        shardings = place and place.parameters(config, models.param_shapes(config))
        params = read(shardings=shardings)
        if quantize is not None:
            params = quantized(params, config, quantize)
        if place is None:
            params = split_layers(params, config)
        replicas.append(Replica(params, place))
    return LM(
        None,
        config,
        codec,
        str(dtype),
        path=folder,
        model_hash=model_hash,
        quantization=quantize,
        replicas=replicas,
        defaults=defaults,
    )
