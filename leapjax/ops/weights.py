"""Weights as the operations take them: pytrees whose leaves one backend can read in place.

Shapes: K inputs and N outputs of a matrix, D width, E head width, V vocabulary, L layers, X
experts, F inner width of an expert.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from flax import struct
from jax import lax

from leapjax.models.config import Experts

# Matrices with the same input, which one product can compute, in the order of concatenation.
GROUPS = {"vkq": ("v", "k", "q"), "gate_up": ("gate", "up")}


class Norm(struct.PyTreeNode):
    """An RMS norm."""

    weight: Any  # (D,)
    bias: Any = None  # (D,), or None
    eps: float = struct.field(pytree_node=False, default=1e-6)  # added to the mean square


class Matrices(struct.PyTreeNode):
    """Matrices with the same input, for XLA.

    Queries, keys and values are clamped to +- `clip` (None: no limit). `training` uses 2-D matmuls
    at XLA's default precision (`leapjax.ops.xla`).
    """

    weights: tuple[Any, ...]  # (K, N) each, or one concatenation of all; uint16 has bfloat16's bits
    biases: tuple[Any, ...] = ()  # (N,) each, or one concatenation; () for none
    scales: tuple[Any, ...] = ()  # of int8: (N,) float32 each, or one concatenation; () for none
    widths: tuple[int, ...] = struct.field(pytree_node=False, default=())  # N of each matrix
    training: bool = struct.field(pytree_node=False, default=False)
    clip: float | None = struct.field(pytree_node=False, default=None)

    def part(self, start: int, stop: int) -> Matrices:
        """Matrices `start` to `stop`, the last one excluded."""
        if len(self.weights) == len(self.widths):
            own = slice(start, stop)
            cut = [x[own] for x in (self.weights, self.biases, self.scales)]
        else:
            own = slice(sum(self.widths[:start]), sum(self.widths[:stop]))
            cut = [
                tuple(x[..., own] for x in xs) for xs in (self.weights, self.biases, self.scales)
            ]
        return self.replace(
            weights=cut[0], biases=cut[1], scales=cut[2], widths=self.widths[start:stop]
        )


class Router(struct.PyTreeNode):
    """The router of a layer's experts.

    `balance` is for training: the weight of the loss that balances the experts' load; 0 for none.
    """

    weight: Any  # (D, X)
    bias: Any = None  # (X,), or None
    rule: Experts = struct.field(pytree_node=False, default=Experts(1, 1, 1))  # how it chooses
    balance: float = struct.field(pytree_node=False, default=0.0)


class ExpertMatrices(struct.PyTreeNode):
    """The experts of one layer, alone or within the stack of a run's layers.

    `training` uses operations that can be differentiated.
    """

    gate: Any  # (X, D, F), or (L, X, D, F) with `layer`; uint16 holds the bits of bfloat16
    up: Any  # as `gate`
    down: Any  # (X, F, D), or (L, X, F, D)
    scales: tuple[Any, ...] = ()  # of int8: (X, F), (X, F), (X, D), perhaps with L; () for none
    layer: Any = None  # () int32, the layer's place in the stack; None if there is no stack
    training: bool = struct.field(pytree_node=False, default=False)

    @property
    def count(self) -> int:
        """X, the experts of a layer (on this device, within `shard_map`)."""
        return self.gate.shape[-3]

    @property
    def size(self) -> int:
        """Weights of a layer's experts."""
        return 3 * math.prod(self.gate.shape[-3:])

    def first(self):
        """() int32: number of the layer's first expert in the stack."""
        return np.int32(0) if self.layer is None else self.layer * np.int32(self.count)

    def scale(self, which: int):
        """Scales of gate (0), up (1) or down (2), or None."""
        return self.scales[which] if self.scales else None

    def of_layer(self) -> ExpertMatrices:
        """The layer's experts without the stack, which copies them."""
        if self.layer is None:
            return self
        return self._map(lambda x: lax.dynamic_index_in_dim(x, self.layer, keepdims=False))

    def expert(self, number) -> ExpertMatrices:
        """One expert, by () int32: matrices (D, F), (D, F), (F, D), read in place."""

        def pick(x):
            flat = x if self.layer is None else x.reshape(-1, *x.shape[2:])
            return lax.dynamic_index_in_dim(flat, self.first() + number, keepdims=False)

        return self._map(pick)

    def _map(self, pick) -> ExpertMatrices:
        own = {name: pick(getattr(self, name)) for name in ("gate", "up", "down")}
        return dataclasses.replace(
            self, **own, scales=tuple(pick(x) for x in self.scales), layer=None
        )


class Head(struct.PyTreeNode):
    """The vocabulary head and the norm before it."""

    norm: Norm  # the final norm
    table: Any = None  # (V, D) or a backend's form of it; None uses the embedding
    pieces: tuple[Any, ...] = ()  # (C, D) views of the table, for `head_summary`; () for none
    bias: Any = None  # (V,), or None
    scales: Any = None  # (V,) float32 of an int8 table, or None
    factor: float = struct.field(pytree_node=False, default=1.0)  # on the logits


class Arranged(struct.PyTreeNode):
    """A model's weights as one backend reads them."""

    embed: Any  # (V, D) token embeddings
    runs: tuple[Any, ...]  # of equal layers (`Stacked` or `Unrolled`)
    head: Head
    log_frequency: Any = None  # (V,) float32, log of each token's share of a corpus, or None
    backend: str = struct.field(pytree_node=False, default="xla")  # of `ops.arrangement.BACKENDS`
