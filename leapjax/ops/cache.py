"""Keys and values in a KV cache: what attention reads, and how rows are written.

Heads come before columns: a head's keys are contiguous, in the order that window passes and
refreshes both want.

Shapes: L layers, B rows, T columns, S queries, G rows written, K KV heads, E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32


class Cached(NamedTuple):
    """The cached keys and values that a layer attends to.

    Attributes:
      keys: (L, B, K, T, E), already rotated.
      values: (L, B, K, T, E).
      valid: (B, T) bool, or (B, S, T) for each query; False keys are never attended.
      layer: () int32, which of the L.
    """

    keys: Any
    values: Any
    valid: Any
    layer: Any


def write_rows(
    cache: Float[Array, "L B K T E"],
    layer: int | Int32[Array, ""],
    rows: Int32[Array, " G"],
    fresh: Float[Array, "G T K E"],
) -> Float[Array, "L B K T E"]:
    """Replace whole rows of one layer, one slice update a row.

    A scatter would be a serial loop on a TPU. Where rows are sharded, XLA updates the shard that
    holds the row.

    Args:
      cache: (L, B, K, T, E).
      layer: which of the L.
      rows: (G,) int32, each row's destination.
      fresh: (G, T, K, E).

    >>> cache = write_rows(jnp.zeros((2, 3, 1, 1, 1)), 1, jnp.array([2]), jnp.ones((1, 1, 1, 1)))
    >>> cache.reshape(2, 3).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    for row, update in zip(rows, fresh.transpose(0, 2, 1, 3)[:, None, None], strict=True):
        cache = lax.dynamic_update_slice(cache, update, (jnp.int32(layer), row, 0, 0, 0))
    return _row_major(cache)


def _row_major(cache):
    """Pin the cache to row-major layout on a GPU.

    Without this, XLA chooses one layout for full passes and another for window passes, and
    transposes the whole cache between them. XLA's CPU backend keeps row-major by itself.
    """

    def pinned(cache):
        return with_layout_constraint(cache, Layout(tuple(range(cache.ndim))))

    return lax.platform_dependent(cache, cuda=pinned, rocm=pinned, default=lambda cache: cache)
