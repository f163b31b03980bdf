"""How long a pass should take on a chip: a roofline, stated so that it can be argued with.

A device's time for a pass is the largest of three, as if each were free of the others:

    compute   = FLOPs / peak
    memory    = (weights + cache read and written) / bandwidth
    exchange  = bytes of all-reduce / bandwidth of the interconnect

FLOPs are those of the products (2 per weight and computed position, 4 S T H E a layer for
attention, 2 D V per window position for the head), split over `tensor` and `fsdp`. The layers
of a pass make two all-reduces each of (rows, positions, D); over n devices one sends
2 (n - 1) / n of its bytes. A decode's step is a window pass; once a block it is a full pass,
of which an iteration takes at most `refresh_group` rows. Peaks are never reached: expect half.
"""

from __future__ import annotations

import dataclasses

from leapjax.decoding import Program
from leapjax.models.config import ModelConfig
from leapjax.planning.chips import Chip
from leapjax.sharding import MeshShape


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a pass by what could bound it."""

    compute: float
    memory: float
    exchange: float

    @property
    def seconds(self) -> float:
        """The largest."""
        return max(self.compute, self.memory, self.exchange)

    @property
    def bound(self) -> str:
        """Which one that is."""
        names = ("compute", "memory", "exchange")
        return max(names, key=lambda name: getattr(self, name))


def layer_weights(model: ModelConfig) -> int:
    """Parameters of all layers' matrices."""
    heads, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    a_layer = model.d_model * (2 * heads + 2 * kv + 3 * model.mlp_hidden_size)
    return model.n_layers * a_layer


def pass_time(
    chip: Chip, mesh: MeshShape, program: Program, rows: int, positions: int, window: int
) -> Time:
    """Time of one pass of a replica.

    Args:
      chip: the kind.
      mesh: how a replica is spread.
      program: the decode.
      rows: rows computed.
      positions: positions computed in each.
      window: positions a row whose logits are computed.
    """
    model, n = program.model, mesh.replica
    # Several JAX devices a chip share its figures.
    share = 1 / chip.devices
    layers = layer_weights(model)
    head = model.d_model * model.vocab_size
    tokens = rows * positions
    attention = 4 * tokens * program.length * model.n_heads * model.head_dim * model.n_layers
    flops = 2 * tokens * layers + attention + 2 * rows * window * head
    size = program.compute_dtype.itemsize
    cache = 0
    if program.cache != "none":
        width = 2 * model.n_layers * model.n_kv_heads * model.head_dim * size
        kv_split = mesh.tensor if model.n_kv_heads % mesh.tensor == 0 else 1
        cache = width * rows * (program.length + positions) / (mesh.fsdp * kv_split)
    memory = (layers + head) * size / n + cache
    reduced = 2 * model.n_layers * tokens / mesh.fsdp * model.d_model * size
    sent = reduced * 2 * (mesh.tensor - 1) / mesh.tensor
    return Time(
        compute=flops / n / (chip.flops * share),
        memory=memory / (chip.bandwidth * share),
        exchange=sent / (chip.interconnect * share),
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
    chip: Chip, mesh: MeshShape, program: Program, slots: int, tokens_per_step: float
) -> Prediction:
    """Predict a slice's speed.

    Args:
      chip: the kind.
      mesh: how the slice is used.
      program: the decode.
      slots: rows a replica.
      tokens_per_step: tokens that a row commits in a step; LocalLeap's gain is an assumption
        here, not a result.
    """
    w, t = program.block_length, program.length
    group = min(program.refresh_group or slots, slots)
    if program.cache == "none":
        full = window = pass_time(chip, mesh, program, slots, t, w)
        step = full.seconds
    else:
        positions = w if program.cache == "dual" else program.gen_length
        window = pass_time(chip, mesh, program, slots, positions, w)
        full = pass_time(chip, mesh, program, group, t, w)
        # Every row refreshes once a block; a block takes so many steps.
        steps_a_block = max(w / tokens_per_step, 1.0)
        refreshes = slots / group / steps_a_block  # a step
        step = window.seconds + refreshes * full.seconds
    tokens = slots * tokens_per_step * mesh.data / step
    chips = mesh.devices / chip.devices
    return Prediction(window, full, step, tokens / chips)
