"""What a pass has to move at least, in bytes a device: the measure of an audit.

    weights    once a pass, however many rows; the head's with the rest of the step
    experts    of the weights, those of the experts that the pass's tokens touch (`work.touched`)
    embedding  the rows of the table that the pass's tokens gather
    cache      keys and values once: read by a pass over windows, written by a refresh or a prefill;
               a storing pass reads those of its rows and writes a block of each
    residual   each layer's residual stream, written once and read once

Shares are those of an even split: what `tensor` or `fsdp` shards or could shard counts once on all
of its devices together; weights over `fsdp` are read after gathering, but experts where they lie,
and all of the replica's tokens come to them. Written logits, attention scores and other activations
are outside: a program that keeps them on the chip moves none.
"""

import dataclasses
import math

from jax.sharding import AbstractMesh

from leapjax.decoding import Program
from leapjax.decoding.prefill import piece_columns
from leapjax.models.families import table
from leapjax.models.weights import EXPERT
from leapjax.ops.mesh import axes_of
from leapjax.planning.compiled import abstract_params
from leapjax.planning.grouped import Routing
from leapjax.serve.memory import array_bytes
from leapjax.sharding import AXES, MeshShape, Placement

WINDOW, REFRESH, FULL, BESIDES = "window pass", "refresh pass", "full pass", "besides"
STORE, PREFILL, WRITE = "storing pass", "prefill", "block write"  # of a block cache


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes a device; see the module. `experts` are among the weights."""

    weights: float
    embedding: float = 0.0
    cache: float = 0.0
    residual: float = 0.0
    experts: float = 0.0

    @property
    def total(self) -> float:
        """Bytes."""
        return self.weights + self.embedding + self.cache + self.residual


@dataclasses.dataclass(frozen=True)
class Expected:
    """A pass as the program's options ask for it."""

    rows: int  # rows of it on a device
    columns: int  # positions computed in each
    need: Need  # what it has to move
    # the tokens that meet a layer's experts (of the last run that has some); None without experts
    routing: Routing | None = None


@dataclasses.dataclass(frozen=True)
class Passes:
    """Everything that a decode has to do in an iteration."""

    # by name: the window pass and the refresh pass of a KV cache; window pass, a turn that stores
    # and a piece of a prefill of a block cache; or the full pass
    passes: dict[str, Expected]
    besides: Need  # the rest of an iteration, of which only the head's weights count
    widths: frozenset[int]  # sizes that the last axis of activations may have


@dataclasses.dataclass(frozen=True)
class Held:
    """What a device keeps, in bytes."""

    layers: float  # weights of the layers, without routed experts
    experts: dict[str, float]  # those of routed experts, by run of layers
    head: float  # the table that the logits are computed with
    other: float  # other weights
    cache: float  # keys and values of all slots
    split: int = 1  # devices that a layer's experts are split over

    @property
    def total(self) -> float:
        """Bytes."""
        return self.layers + sum(self.experts.values()) + self.head + self.other + self.cache


def held(mesh: MeshShape, program: Program, slots: int, quantize: str | None = None) -> Held:
    """What a device of a replica keeps."""
    place = Placement(AbstractMesh((mesh.fsdp, mesh.expert, mesh.tensor), AXES[1:]))  # type: ignore
    params = abstract_params(program, place, quantize)
    spread = place.parameters(program.model, params)
    bytes = {name: array_bytes(params[name], spread[name]) for name in params}
    runs = program.model.runs
    layers = sum(bytes.pop(run.name) for run in runs)
    head = bytes.pop("embed" if program.model.tie_embeddings else "head")
    routed = {w.short for w in table(program.model) if w.role == EXPERT}
    experts = {
        run.name: float(
            sum(
                array_bytes(leaf, spread[run.name][name])
                for name, leaf in params[run.name].items()
                if name.removesuffix("_scale") in routed
            )
        )
        for run in runs
        if run.experts
    }
    layers -= sum(experts.values())
    stored = program.kv_cache.shapes(program, slots)
    cache = array_bytes(stored, [place.cache(each.shape) for each in stored])
    each = {axes_of("experts", run.experts.count, place.mesh) for run in runs if run.experts}
    split = math.prod(place.mesh.shape[axis] for axes in each for axis in axes)
    return Held(layers, experts, head, sum(bytes.values()), cache, split)


def passes(mesh: MeshShape, program: Program, slots: int, quantize: str | None = None) -> Passes:
    """The needs of each kind of pass in a replica's decode."""
    kept, model = held(mesh, program, slots, quantize), program.model
    routed = [(run.name, run.experts) for run in model.runs if run.experts]
    item, rows = program.compute_dtype.itemsize, 2 if program.guidance else 1

    def one(count: int, columns: int, spread: int, cache: float) -> Expected:
        stream, tokens = count * columns * model.d_model * item, count * columns
        stream /= spread * mesh.tensor
        routing = {name: Routing(one, tokens, kept.split) for name, one in routed}
        experts = sum(
            kept.experts[name] * one.touched * kept.split / one.experts.count
            for name, one in routing.items()
        )
        weights = mesh.fsdp * kept.layers + experts
        need = Need(weights, stream, cache, 2 * model.n_layers * stream, experts)
        last = routing[routed[-1][0]] if routed else None
        return Expected(count // spread, columns, need, last)

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
    widths |= {one.shared_size for _, one in routed} - {0}
    widths |= {-(-n // mesh.tensor) for n in widths}
    return Passes(found, Need(mesh.fsdp * kept.head), frozenset(widths))
