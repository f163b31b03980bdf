"""Runs of equal layers, stacked or one by one, and the loop through them.

Shapes: L layers of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from leapjax.ops.weights import Arranged

if TYPE_CHECKING:
    from jaxtyping import Array, Int32

Body = Callable[..., Any]  # one layer: (index, layer, carry, outputs) -> carry


class Stacked(struct.PyTreeNode):
    """A run of equal layers with their weights stacked along a leading axis.

    Attributes:
      layers: the layer's weights, each leaf (L, ...).
      depth: L.
    """

    layers: dict[str, Any]
    depth: int = struct.field(pytree_node=False)

    def fold(self, body: Body, carry: Any, first: int, outputs: Int32[Array, "B W"] | None) -> Any:
        """Go through the layers; see `fold`."""

        def step(carry, scanned):
            index, layer = scanned
            return body(first + index, layer, carry, None), None

        if outputs is None:
            return lax.scan(step, carry, (jnp.arange(self.depth), self.layers))[0]
        # Scan over indices: slicing the last layer off the stack would copy all the others.
        last = self.depth - 1

        def layer(i):
            return jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), self.layers
            )

        carry, _ = lax.scan(lambda c, i: step(c, (i, layer(i))), carry, jnp.arange(last))
        return body(first + last, layer(last), carry, outputs)


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
    """Go through all layers in order.

    Args:
      model: the weights.
      bodies: one per run, `(index, layer, carry, outputs) -> carry`; the index counts all layers.
      carry: initial carry.
      outputs: passed to the last layer of the model; the others get None.
    """
    first = 0
    for run, body in zip(model.runs, bodies, strict=True):
        is_last = run is model.runs[-1]
        carry = run.fold(body, carry, first, outputs if is_last else None)
        first += run.depth
    return carry
