"""From a family's table of names to a plan: which tensor fills which part of which leaf.

The plan is strict: every tensor of the source is used exactly once (or ignored by a row
that says so), every parameter is filled, every shape and dtype is checked. All of it
from headers, before a single weight is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from leapjax.errors import UserError
from leapjax.models import FAMILIES, ModelConfig, table
from leapjax.models.weights import Weight, matches

from .source import Source
from .tensor import FLOATS, Tensor, shown


@dataclasses.dataclass(frozen=True)
class Piece:
    """One source tensor and its place: all of a leaf, or one layer of it."""

    leaf: str
    layer: int | None
    transpose: bool
    tensor: Tensor


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a conversion will do.

    Attributes:
      leaves: leaf name ("layers.q") -> (shape, dtype) as it will be stored.
      pieces: leaf name -> its pieces, by layer.
      tied_head: a head tensor that the tied embedding makes redundant, or None.
      ignored: tensors that a row of the table leaves out on purpose.
    """

    leaves: dict[str, tuple[tuple[int, ...], np.dtype]]
    pieces: dict[str, tuple[Piece, ...]]
    tied_head: Tensor | None
    ignored: tuple[Tensor, ...]

    @property
    def param_count(self) -> int:
        """Number of weights in the result."""
        return sum(math.prod(shape) for shape, _ in self.leaves.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the result's arrays."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.leaves.values())


def parse_dtype(dtype: object) -> np.dtype | None:
    """The dtype a caller names, or None to keep what is stored.

    Args:
      dtype: None, a dtype, or its name.

    Raises:
      UserError: no floating-point dtype that weights can have here.
    """
    if dtype is None:
        return None
    names = {d.name: d for d in FLOATS if d != np.float64}
    try:
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name  # type: ignore[arg-type]
    except TypeError:
        name = str(dtype)
    if name not in names:
        raise UserError(f"dtype {name!r}: expected one of {', '.join(sorted(names))}")
    return names[name]


def expected(config: ModelConfig) -> Iterator[tuple[Weight, int | None]]:
    """What a checkpoint of this shape holds: what has no layers first, then layer by layer.

    Yields:
      (row of the table, layer within its run or None).
    """
    rows = table(config)
    for weight in rows:
        if not weight.stacked:
            yield weight, None
    for run in config.runs:
        own = [weight for weight in rows if weight.name.startswith(f"{run.name}.")]
        for layer in range(run.n_layers):
            for weight in own:
                yield weight, layer


def head_name(config: ModelConfig) -> str:
    """The hub's name of the vocabulary head, also where it is tied and has no row."""
    return FAMILIES[config.family].HUB["head"] + ".weight"


def make_plan(source: Source, config: ModelConfig, dtype: object = None) -> Plan:
    """Match a source's tensors with a model's parameters.

    Args:
      source: the hub folder's tensors.
      config: the model's shape.
      dtype: of the result; None keeps what is stored.

    Raises:
      UserError: missing, unexpected or misshapen tensor, or a dtype that can't be kept.
    """
    want = parse_dtype(dtype)
    left = dict(source.tensors)
    pieces: dict[str, list[Piece]] = {}
    # One at a time: a config that claims a billion layers stops at the first missing one.
    for row, layer in expected(config):
        name, shape = row.hub_name(layer), row.hub_shape()
        tensor = left.pop(name, None)
        if tensor is None:
            raise UserError(_missing(name, source, left, config))
        if tensor.shape != shape:
            raise UserError(
                f"{tensor.where} has shape {tensor.shape}, config.json calls for {shape}; "
                "config and weights belong to different models"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{tensor.where} has dtype {tensor.dtype.name}; expected a float dtype (quantised "
                "checkpoints are not supported: use the original one)"
            )
        pieces.setdefault(row.name, []).append(Piece(row.name, layer, row.transposed, tensor))
    ignored = [
        left.pop(name)
        for name in list(left)
        if any(matches(pattern, name) for pattern in FAMILIES[config.family].IGNORED)
    ]
    tied = None
    if config.tie_embeddings:
        tied = left.pop(head_name(config), None)
        embed = pieces["embed"][0].tensor
        if tied is not None and (tied.shape, tied.dtype) != (embed.shape, embed.dtype):
            raise UserError(
                f"{tied.where} differs from the embedding in shape or dtype, but config.json ties "
                "the two; correct the config"
            )
    if left:
        raise UserError(_unexpected(left, config))
    shapes = {row.name: row.shape for row in table(config)}
    leaves = {leaf: (shapes[leaf], want or _stored(pieces[leaf])) for leaf in shapes}
    return Plan(leaves, {k: tuple(pieces[k]) for k in shapes}, tied, tuple(ignored))


def _stored(pieces: list[Piece]) -> np.dtype:
    """The one dtype of a leaf's pieces."""
    first = pieces[0].tensor
    for piece in pieces:
        if piece.tensor.dtype != first.dtype:
            raise UserError(
                f"{piece.tensor.where} is {piece.tensor.dtype.name}, but {shown(first.name)} is "
                f"{first.dtype.name}; choose one: leapjax convert --dtype float32 SRC DST"
            )
    if first.dtype == np.float64:
        raise UserError(
            f"{first.where} is float64; choose one: leapjax convert --dtype float32 SRC DST"
        )
    return first.dtype


def _missing(name: str, source: Source, left: dict[str, Tensor], config: ModelConfig) -> str:
    known = {row.hub for row in table(config)} | {head_name(config)}
    strangers = [n for n in left if not any(matches(pattern, n) for pattern in known)]
    hint = f" (unexpected in its place: {shown(strangers[0])})" if strangers else ""
    return (
        f"{source.described}: tensor {shown(name)} is missing{hint}; config.json describes a "
        f"{config.family} model of {config.n_layers} layers, and this is no complete one"
    )


def _unexpected(left: dict[str, Tensor], config: ModelConfig) -> str:
    first = next(iter(left.values()))
    more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    return (
        f"{first.where} is unexpected{more}: a {config.family} model with this config.json has no "
        "such parameter; config and weights belong to different models"
    )
