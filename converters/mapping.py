"""From a family's table of names to a plan: which tensor fills which part of which leaf.

The plan is strict: every tensor of the source is used exactly once (or ignored by a row
that says so), every parameter is filled, every shape and dtype is checked. All of it
from headers, before a single weight is read.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from leapjax.errors import UserError
from leapjax.models import FAMILIES, ModelConfig, table
from leapjax.models.config import Run
from leapjax.models.weights import EXPERT, Weight, matcher

from .source import Source
from .tensor import FLOATS, Tensor, shown


@dataclasses.dataclass(frozen=True, slots=True)
class HubTensor:
    """A tensor that a checkpoint of some shape has."""

    name: str
    shape: tuple[int, ...]  # on the hub
    rows: tuple[Weight, ...]  # of the table: parts of it (`Weight.part`); none where it is empty
    layer: int | None = None  # within its run; None outside the layers
    expert: int | None = None  # within its layer; None where it isn't one expert's

    @property
    def merged(self) -> bool:
        """Whether it holds all experts of a layer."""
        return self.expert is None and any(row.role == EXPERT for row in self.rows)

    def places(self) -> Iterator[tuple[Weight, int | None]]:
        """The rows of the table (and experts or None) that it fills, in the order of its data."""
        if self.merged:
            for expert in range(self.shape[0]):
                yield self.rows[0], expert
        else:
            for row in self.rows:
                yield row, self.expert


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A source tensor, or a part of one, and its place: a leaf, a layer, an expert."""

    leaf: str
    layer: int | None
    expert: int | None
    transpose: bool
    tensor: Tensor


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a conversion will do."""

    leaves: dict[str, tuple[tuple[int, ...], np.dtype]]  # leaf name ("layers.q") -> as stored
    pieces: dict[str, tuple[Piece, ...]]  # leaf name -> by layer, then by expert
    merged: bool  # one source tensor has all experts of a layer (`Weight.merged`)
    tied_head: Tensor | None  # the tied embedding makes it redundant
    ignored: tuple[Tensor, ...]  # buffers that the config determines, and tensors without a number

    @property
    def param_count(self) -> int:
        """Number of weights in the result."""
        return sum(math.prod(shape) for shape, _ in self.leaves.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the result's arrays."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.leaves.values())


def parse_dtype(dtype: object) -> np.dtype | None:
    """The dtype that a caller names, or None to keep what is stored."""
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


def expected(config: ModelConfig, merged: bool = False) -> Iterator[HubTensor]:
    """What a checkpoint of this shape holds: what has no layers first, then layer by layer.

    Of a layer's experts, all of one come before the next. `merged`: one tensor has all experts of a
    layer.
    """
    rows = table(config)
    for weight in rows:
        if not weight.stacked:
            yield HubTensor(weight.hub_name(), weight.hub_shape(), (weight,))
    for run in config.runs:
        own = [weight for weight in rows if weight.name.startswith(f"{run.name}.")]
        yield from _run(own, run, merged)


def _run(rows: list[Weight], run: Run, merged: bool) -> Iterator[HubTensor]:
    """The tensors of a run of layers, whose rows of the table are given."""
    experts = [row for row in rows if row.role == EXPERT]
    together: dict[str, list[Weight]] = {}
    for row in rows:
        together.setdefault(row.hub, []).append(row)
    for layer in range(run.n_layers):
        for same in together.values():
            row, shape = same[0], same[0].hub_shape()
            if row.role != EXPERT:
                yield HubTensor(row.hub_name(layer), shape, tuple(same), layer)
            elif merged and row.merged:
                yield HubTensor(_merged_name(row, layer), (row.shape[1], *shape), (row,), layer)
            elif row is experts[0]:  # and the other matrices of an expert with it
                for expert in range(row.shape[1]):
                    for one in experts:
                        name = one.hub_name(layer, expert)
                        yield HubTensor(name, one.hub_shape(), (one,), layer, expert)


def _merged_name(row: Weight, layer: int) -> str:
    return row.merged.replace("{}", str(row.first + layer))


def head_name(config: ModelConfig) -> str:
    """The hub's name of the vocabulary head, also where it is tied and has no row."""
    return FAMILIES[config.family].HUB["head"] + ".weight"


def make_plan(source: Source, config: ModelConfig, dtype: object = None) -> Plan:
    """Match a source's tensors with a model's parameters.

    `dtype` is that of the result; None keeps what is stored. What doesn't fit is a `UserError`.
    """
    want = parse_dtype(dtype)
    left = dict(source.tensors)
    rows = table(config)
    merged = any(row.merged and _merged_name(row, 0) in left for row in rows)
    pieces: dict[str, list[Piece]] = {row.name: [] for row in rows}
    # One at a time: a config that claims a billion layers stops at the first missing one.
    for own in expected(config, merged):
        tensor = left.pop(own.name, None)
        if tensor is None:
            raise UserError(_missing(own, source, left, config))
        if tensor.shape != own.shape:
            raise UserError(
                f"{tensor.where} has shape {tensor.shape}, config.json calls for {own.shape}; "
                "config and weights belong to different models"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{tensor.where} has dtype {tensor.dtype.name}; expected a float dtype (quantised "
                "checkpoints are not supported: use the original one)"
            )
        for row, expert in own.places():
            place = tensor
            if expert is not None and own.expert is None:
                place = tensor.item(expert)
            elif row.part is not None:
                place = tensor.part(row.part[0], row.shape[-1])
            pieces[row.name].append(Piece(row.name, own.layer, expert, row.transposed, place))
    skip = matcher(FAMILIES[config.family].IGNORED)
    # Shared experts of no width have tensors without a number.
    ignored = [left.pop(name) for name in list(left) if skip(name) or 0 in left[name].shape]
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
    leaves = {row.name: (row.shape, want or _stored(pieces[row.name])) for row in rows}
    return Plan(leaves, {k: tuple(v) for k, v in pieces.items()}, merged, tied, tuple(ignored))


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


def _missing(own: HubTensor, source: Source, left: dict[str, Tensor], config: ModelConfig) -> str:
    rows = table(config)
    if own.rows[0].merged:
        row, layer = own.rows[0], own.layer or 0
        other = row.hub_name(layer, 0) if own.merged else _merged_name(row, layer)
        if other in left:
            return (
                f"{source.described}: experts are merged in one tensor in some layers only "
                f"({shown(own.name)} is missing, {shown(other)} is there); merge all or none"
            )
    names = {row.hub for row in rows} | {row.merged or row.hub for row in rows}
    known = matcher(names | {head_name(config)})
    strangers = [n for n in left if not known(n)]
    hint = f" (unexpected in its place: {shown(strangers[0])})" if strangers else ""
    return (
        f"{source.described}: tensor {shown(own.name)} is missing{hint}; config.json describes a "
        f"{config.family} model of {config.n_layers} layers, and this is no complete one"
    )


def _unexpected(left: dict[str, Tensor], config: ModelConfig) -> str:
    first = next(iter(left.values()))
    more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    return (
        f"{first.where} is unexpected{more}: a {config.family} model with this config.json has no "
        "such parameter; config and weights belong to different models"
    )
