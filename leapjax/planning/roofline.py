"""How long a pass should take on a chip: a roofline, stated so that it can be argued with.

    seconds  = the larger of compute and memory, then exchange (nothing else can be done meanwhile)
    compute  = FLOPs / devices of the replica / peak
    memory   = (weights + cached keys and values) a device / bandwidth
    exchange = bytes of all-reduce / links, and 1 us a hop; with fsdp, weights gathered too

FLOPs are those of `leapjax.planning.work`: 2 a weight and computed position, 4 T H E a query
and layer, the head on the window only, the last layer's output on the window only in a full
pass. Weights are read once a pass, after gathering if they are spread over `fsdp`; keys and values
of all T columns are written by a full pass and read by a window's. Both as they are sharded: what
an axis does not divide is on every device.

Each layer sums (rows, positions, D) over `tensor` twice, and the embedding once. Over c chips one
sends 2 (c - 1) / c of its bytes over as many links as the replica has dimensions (lines without
wrap-around; XLA may do better on a torus), in c hops of 1 us (latency of a hop: "How to Scale Your
Model", https://jax-ml.github.io/scaling-book/sharding). What the two devices of a chip tell
each other is free. Over `fsdp` the layers' weights are gathered once a pass over one link.

Left out: activations, attention scores, logits, norms. Peaks are never reached.
"""

from __future__ import annotations

import dataclasses

from jax.sharding import AbstractMesh

from leapjax.decoding import Program
from leapjax.planning import work
from leapjax.planning.chips import Slice
from leapjax.planning.compiled import abstract_params
from leapjax.serve.memory import array_bytes
from leapjax.sharding import MeshShape, Placement

HOP = 1e-6  # seconds


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a pass by what could bound it."""

    compute: float
    memory: float
    exchange: float

    @property
    def seconds(self) -> float:
        """Compute and memory overlap; an exchange is waited for."""
        return max(self.compute, self.memory) + self.exchange

    @property
    def bound(self) -> str:
        """Which is the largest."""
        names = ("compute", "memory", "exchange")
        return max(names, key=lambda name: getattr(self, name))


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


def held(mesh: MeshShape, program: Program, slots: int) -> Held:
    """What a device of a replica keeps.

    Args:
      mesh: how a replica is spread.
      program: the decode.
      slots: rows of a replica.
    """
    place = Placement(AbstractMesh((mesh.fsdp, mesh.tensor), ("fsdp", "tensor")))  # type: ignore
    params = abstract_params(program, place)
    spread = place.parameters(program.model, params)
    sizes = {name: array_bytes(params[name], spread[name]) for name in params}
    layers = sizes.pop("layers")
    head = sizes.pop("embed" if program.model.tie_embeddings else "head")
    stored = program.kv_cache.shapes(program, slots)
    cache = array_bytes(stored, [place.cache(each.shape) for each in stored])
    return Held(layers, head, sum(sizes.values()), cache)


def pass_time(
    where: Slice, mesh: MeshShape, program: Program, slots: int, rows: int, positions: int
) -> Time:
    """Time of one pass of a replica.

    Args:
      where: the slice.
      mesh: how it is used.
      program: the decode.
      slots: rows of a replica.
      rows: rows computed.
      positions: positions computed in each; all columns make a full pass.
    """
    model, chip, n = program.model, where.chip, mesh.replica
    t, w, size = program.length, program.block_length, program.compute_dtype.itemsize
    item = held(mesh, program, slots)
    whole = positions == t
    if whole:
        flops = work.full_pass(model, rows, t, w, program.kv_cache.stores, size).flops
    else:
        flops = work.window_pass(model, rows, t, positions, size).flops
        flops -= 2 * rows * (positions - w) * model.d_model * model.vocab_size
    memory = mesh.fsdp * (item.layers + item.head) + item.cache * rows / slots
    # Bytes summed over `tensor`. Rows that refresh are not spread over fsdp.
    columns = (2 * model.n_layers + 1) * positions
    if whole:
        columns -= 2 * (positions - w)
    summed = columns * rows * model.d_model * size / (1 if whole else mesh.fsdp)
    # Several JAX devices a chip share its figures.
    share = 1 / chip.devices
    exchange = 0.0
    group = -(-mesh.tensor // chip.devices)
    if group > 1:
        links = where.spanned(mesh.tensor)
        exchange += summed * 2 * (group - 1) / group / (chip.link * links)
        exchange += (2 * model.n_layers + 1) * group * HOP
    if mesh.fsdp > 1:
        exchange += (mesh.fsdp - 1) * item.layers / (chip.link * share)
        exchange += model.n_layers * mesh.fsdp * HOP
    return Time(
        compute=flops / n / (chip.flops * share),
        memory=memory / (chip.bandwidth * share),
        exchange=exchange,
    )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a slice should reach.

    Attributes:
      window: the pass that most steps take.
      full: the pass over whole sequences of `refresh_group` rows (all rows without a cache).
      step: mean seconds a step.
      tokens_per_s_chip: tokens/s of the slice, a chip.
    """

    window: Time
    full: Time
    step: float
    tokens_per_s_chip: float


def predict(
    where: Slice, mesh: MeshShape, program: Program, slots: int, tokens_per_step: float
) -> Prediction:
    """Predict a slice's speed.

    A block's first step is a full pass; rows take turns, `refresh_group` at a time. So a block
    of all rows takes as many iterations as it has steps, or as there are groups if those are
    more; each computes the window, and one a group the full pass too.

    Args:
      where: the slice.
      mesh: how it is used.
      program: the decode.
      slots: rows a replica.
      tokens_per_step: tokens that a row commits in a step; LocalLeap's gain is an assumption
        here, not a result.
    """
    w, t = program.block_length, program.length
    steps = max(w / tokens_per_step, 1.0)  # of a block
    if not program.kv_cache.stores:
        full = window = pass_time(where, mesh, program, slots, slots, t)
        iterations, seconds = steps, steps * full.seconds
    else:
        positions = program.kv_cache.columns(program)
        group = min(program.refresh_group or slots, slots)
        window = pass_time(where, mesh, program, slots, slots, positions)
        full = pass_time(where, mesh, program, slots, group, t)
        iterations = max(steps, slots / group)
        seconds = iterations * window.seconds + slots / group * full.seconds
    tokens = slots * w * mesh.data / seconds
    chips = mesh.devices / where.chip.devices
    return Prediction(window, full, seconds / iterations, tokens / chips)
