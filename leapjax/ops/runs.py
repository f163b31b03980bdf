"""Runs of equal layers, stacked or one by one, and the loop through them.

Shapes: L layers of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from leapjax.ops.weights import Arranged, ExpertMatrices

if TYPE_CHECKING:
    from jaxtyping import Array, Int32

Body = Callable[..., Any]  # one layer: (index, layer, carry, outputs) -> carry


class Stacked(struct.PyTreeNode):
    """A run of equal layers with their weights stacked along a leading axis.

    `whole` are weights that each layer gets as a stack of all layers and its place there: a slice
    of a layer's experts would be copied before they are read.
    """

    layers: dict[str, Any]  # the layer's weights, each leaf (L, ...)
    depth: int = struct.field(pytree_node=False)  # L
    whole: dict[str, ExpertMatrices] = struct.field(default_factory=dict)

    def fold(self, body: Body, carry: Any, first: int, outputs: Int32[Array, "B W"] | None) -> Any:
        """Go through the layers; see `fold`."""

        def step(carry, scanned):
            index, layer = scanned
            own = {name: w.replace(layer=index) for name, w in self.whole.items()}
            return body(first + index, layer | own, carry, None), None

        if outputs is None:
            return lax.scan(step, carry, (jnp.arange(self.depth, dtype=jnp.int32), self.layers))[0]
        # Scan over indices: slicing the last layer off the stack would copy all the others.
        last = self.depth - 1

        def layer(i):
            return jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), self.layers
            )

        carry, _ = lax.scan(
            lambda c, i: step(c, (i, layer(i))), carry, jnp.arange(last, dtype=jnp.int32)
        )
        own = {name: w.replace(layer=np.int32(last)) for name, w in self.whole.items()}
        return body(first + last, layer(last) | own, carry, outputs)


class Unrolled(struct.PyTreeNode):
    """A run of layers with separate arrays, compiled one by one."""

    layers: tuple[dict[str, Any], ...]

    @property
    def depth(self) -> int:
        """How many layers."""
        return len(self.layers)

    def fold(self, body: Body, carry: Any, first: int, outputs: Int32[Array, "B W"] | None) -> Any:
        """Go through the layers; see `fold`."""
        for i, layer in enumerate(self.layers):
            carry = body(first + i, layer, carry, outputs if i == len(self.layers) - 1 else None)
        return carry


def fold(
    model: Arranged,
    bodies: Sequence[Body],
    carry: Any,
    outputs: Int32[Array, "B W"] | None = None,
) -> Any:
    """Go through all layers in order, with a carry.

    A run has one body, `(index, layer, carry, outputs) -> carry`; the index counts all layers.
    `outputs` go to the last layer of the model; the others get None.
    """
    first = 0
    for run, body in zip(model.runs, bodies, strict=True):
        is_last = run is model.runs[-1]
        carry = run.fold(body, carry, first, outputs if is_last else None)
        first += run.depth
    return carry
