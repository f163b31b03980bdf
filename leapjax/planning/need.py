"""What a pass has to move at least, in bytes a device: the measure of an audit.

    weights    once a pass, however many rows; the head's with the rest of the step
    embedding  the rows of the table that the pass's tokens gather
    cache      keys and values once: read by a pass over windows, written by a refresh or a prefill;
               a storing pass reads those of its rows and writes a block of each
    residual   each layer's residual stream, written once and read once

Shares are those of an even split: what `tensor` or `fsdp` shards or could shard counts once on all
of its devices together; weights over `fsdp` are read after gathering. Written logits, attention
scores and other activations are outside: a program that keeps them on the chip moves none.
"""

from __future__ import annotations

import dataclasses

from jax.sharding import AbstractMesh

from leapjax.decoding import Program
from leapjax.decoding.prefill import piece_columns
from leapjax.planning.compiled import abstract_params
from leapjax.serve.memory import array_bytes
from leapjax.sharding import AXES, MeshShape, Placement

WINDOW, REFRESH, FULL, BESIDES = "window pass", "refresh pass", "full pass", "besides"
STORE, PREFILL, WRITE = "storing pass", "prefill", "block write"  # of a block cache


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes a device; see the module."""

    weights: float
    embedding: float = 0.0
    cache: float = 0.0
    residual: float = 0.0

    @property
    def total(self) -> float:
        """Bytes."""
        return self.weights + self.embedding + self.cache + self.residual


@dataclasses.dataclass(frozen=True)
class Expected:
    """A pass as the program's options ask for it.

    Attributes:
      rows: rows of it on a device.
      columns: positions computed in each.
      need: what it has to move.
    """

    rows: int
    columns: int
    need: Need


@dataclasses.dataclass(frozen=True)
class Passes:
    """Everything that a decode has to do in an iteration.

    Attributes:
      passes: by name: the window pass and the refresh pass of a KV cache; window pass, a turn that
        stores and a piece of a prefill of a block cache; or the full pass.
      besides: the rest of an iteration, of which only the head's weights count.
      widths: sizes that the last axis of activations may have.
    """

    passes: dict[str, Expected]
    besides: Need
    widths: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Held:
    """What a device keeps, in bytes.

    Attributes:
      layers: weights of the layers.
      head: the table that the logits are computed with.
      other: other weights.
      cache: keys and values of all slots.
    """

    layers: float
    head: float
    other: float
    cache: float

    @property
    def total(self) -> float:
        """Bytes."""
        return self.layers + self.head + self.other + self.cache


def held(mesh: MeshShape, program: Program, slots: int, quantize: str | None = None) -> Held:
    """What a device of a replica keeps.

    Args:
      mesh: how a replica is spread.
      program: the decode.
      slots: rows of a replica.
      quantize: as in `leapjax.load`.
    """
    place = Placement(AbstractMesh((mesh.fsdp, mesh.expert, mesh.tensor), AXES[1:]))  # type: ignore
    params = abstract_params(program, place, quantize)
    spread = place.parameters(program.model, params)
    sizes = {name: array_bytes(params[name], spread[name]) for name in params}
    layers = sum(sizes.pop(run.name) for run in program.model.runs)
    head = sizes.pop("embed" if program.model.tie_embeddings else "head")
    stored = program.kv_cache.shapes(program, slots)
    cache = array_bytes(stored, [place.cache(each.shape) for each in stored])
    return Held(layers, head, sum(sizes.values()), cache)


def passes(mesh: MeshShape, program: Program, slots: int, quantize: str | None = None) -> Passes:
    """What a replica's decode needs.

    Args:
      mesh: how the replica is spread.
      program: the decode.
      slots: rows of the replica.
      quantize: as in `leapjax.load`.
    """
    kept, model = held(mesh, program, slots, quantize), program.model
    item, rows = program.compute_dtype.itemsize, 2 if program.guidance else 1

    def one(count: int, columns: int, spread: int, cache: float) -> Expected:
        stream = count * columns * model.d_model * item / (spread * mesh.tensor)
        need = Need(mesh.fsdp * kept.layers, stream, cache, 2 * model.n_layers * stream)
        return Expected(count // spread, columns, need)

    everybody, length = slots * rows, program.length
    group = min(program.refresh_group or slots, slots) * rows
    row, block = kept.cache / everybody, program.block_length
    kv = program.kv_cache
    if not kv.stores:
        found = {FULL: one(everybody, length, mesh.fsdp, 0.0)}
    elif kv.refreshes:
        columns = kv.columns(program)
        found = {
            WINDOW: one(everybody, columns, mesh.fsdp, kept.cache),
            # Rows that refresh are not spread over fsdp.
            REFRESH: one(group, length, 1, group * row),
        }
    else:
        wide, piece = kv.wide(program, slots), piece_columns(program)
        columns = 2 * block if wide else block
        found = {WINDOW: one(everybody, columns, mesh.fsdp, kept.cache)}
        if kv.folds(program) and not wide:
            found[STORE] = one(group, 2 * block, 1, group * row * (1 + block / length))
        found[PREFILL] = one(rows, piece, 1, rows * row * piece / length)
    widths = {model.d_model, model.mlp_hidden_size}
    widths |= {-(-n // mesh.tensor) for n in widths}
    return Passes(found, Need(mesh.fsdp * kept.head), frozenset(widths))
