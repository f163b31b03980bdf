"""Where a forward pass keeps its activations on a replica's mesh.

A replica's program is traced under its mesh (`leapjax.sharding.under_mesh`).
Without a mesh, with `tensor` = 1, or where `tensor` does not divide D, the functions here return
their argument.

Shapes: B rows, S positions computed now, D width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jax import lax
from jax.sharding import PartitionSpec, get_abstract_mesh

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Logical axis -> mesh axis, or several. The one table.
RULES: dict[str, str | tuple[str, ...]] = {
    "rows": "fsdp",
    "vocabulary": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "residual": "tensor",
    "width": "fsdp",
    "experts": ("expert", "fsdp"),
}


def axes_of(name: str, size: int, mesh) -> tuple[str, ...]:
    """The mesh axes that split an axis of an array; () if they are trivial or don't divide it.

    `size` is in elements, or in whole things (heads) that are not cut; the mesh may be abstract.
    """
    rule = RULES[name]
    axes = tuple(
        axis for axis in ((rule,) if isinstance(rule, str) else rule) if mesh.shape.get(axis, 1) > 1
    )
    return () if size % math.prod(mesh.shape[axis] for axis in axes) else axes


# Positions of a pass from which a sum over devices may overlap its product. The TPU compiler then
# cuts both into pieces and exchanges them asynchronously. With fewer positions that costs more
# than it hides, and on v6e the stack of weights is laid out anew for it.
OVERLAP_FROM = 4096


def split_residual(x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """The residual stream (B, S, D), with D split over `tensor`.

    Each device then adds, keeps and norms only its own part of the width.
    """
    return _along_width(x, "tensor")


def gather(x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """Activations (B, S, D) with all of D on each device, as a product needs them."""
    return _along_width(x, None)


def add_to_residual(x: Float[Array, "B S D"], y: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """Residual sum x + y, split like x.

    y is a product whose input was split over `tensor`: each device holds a summand, and the sum is
    a reduce-scatter.
    """
    return split_residual(x + (y if x.shape[0] * x.shape[1] >= OVERLAP_FROM else gather(y)))


def _along_width(x, axis: str | None):
    mesh = get_abstract_mesh()
    size = mesh.shape.get("tensor", 1)
    if size == 1 or x.shape[-1] % size:
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return lax.with_sharding_constraint(x, PartitionSpec(*free, axis))
