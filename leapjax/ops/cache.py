"""Keys and values in a KV cache: what attention reads, and how rows are written.

Heads come before columns: a head's keys are contiguous, in the order that window passes and
refreshes both want.

Shapes: L layers, B rows, T columns, S queries, G rows written, K KV heads, E head width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec, get_abstract_mesh

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32


class Cached(NamedTuple):
    """The cached keys and values that a layer attends to."""

    keys: Any  # (L, B, K, T, E), already rotated
    values: Any  # (L, B, K, T, E)
    valid: Any  # (B, T) bool, or (B, S, T) for each query; False keys are never attended
    layer: Any  # () int32, which of the L


def of_rows(cached: Cached, rows: Int32[Array, " G"]) -> Cached:
    """A layer's keys and values of some rows.

    One layer's are few enough for the chip of a TPU to hold; `read_rows` before the pass would copy
    those of all layers. `valid` is already that of the chosen rows.
    """
    if cached.keys.shape[1] == 1:
        return cached

    def taken(c):
        size = (1, 1, *c.shape[2:])
        each = [lax.dynamic_slice(c, (cached.layer, row, 0, 0, 0), size) for row in rows]
        return jnp.concatenate(each, axis=1)

    return Cached(taken(cached.keys), taken(cached.values), cached.valid, 0)


def write_rows(
    cache: Float[Array, "L B K T E"],
    layer: int | Int32[Array, ""],
    rows: Int32[Array, " G"],
    fresh: Float[Array, "G T K E"],
) -> Float[Array, "L B K T E"]:
    """Replace whole rows of one layer, one slice update a row.

    A scatter would be a serial loop on a TPU. Where rows are sharded, XLA updates the shard that
    holds the row.

    >>> cache = write_rows(jnp.zeros((2, 3, 1, 1, 1)), 1, jnp.array([2]), jnp.ones((1, 1, 1, 1)))
    >>> cache.reshape(2, 3).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    for row, update in zip(rows, fresh.transpose(0, 2, 1, 3)[:, None, None], strict=True):
        place = (jnp.int32(layer), row, 0, 0, 0)
        cache = lax.dynamic_update_slice(cache, _update_in_order(update), place)
    return _in_order(cache, "cuda", "rocm")


def read_rows(
    cache: Float[Array, "L B K T E"], rows: Int32[Array, " G"]
) -> Float[Array, "L G K T E"]:
    """Some rows of all layers; of a cache with a single row, the cache itself.

    >>> cache = jnp.arange(6.0).reshape(2, 3, 1, 1, 1)
    >>> read_rows(cache, jnp.array([2])).reshape(2).tolist()
    [2.0, 5.0]
    """
    if cache.shape[1] == 1:
        return cache
    each = [lax.dynamic_slice_in_dim(cache, rows[i], 1, 1) for i in range(rows.shape[0])]
    return jnp.concatenate(each, axis=1)


def write_columns(
    cache: Float[Array, "L B K T E"],
    row: Int32[Array, ""],
    column: Int32[Array, ""],
    fresh: Float[Array, "L 1 S K E"],
) -> Float[Array, "L B K T E"]:
    """Replace S columns of a row in all layers, by one slice update.

    >>> cache, fresh = jnp.zeros((1, 2, 1, 4, 1)), jnp.ones((1, 1, 2, 1, 1))
    >>> write_columns(cache, jnp.int32(1), jnp.int32(2), fresh).reshape(2, 4).tolist()
    [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    update = _update_in_order(fresh.transpose(0, 1, 3, 2, 4))
    return _in_order(
        lax.dynamic_update_slice(cache, update, (0, row, 0, column, 0)), "cuda", "rocm"
    )


def _update_in_order(update):
    """One row's keys or values (L, 1, K, T, E), in the cache's order on a TPU.

    Without this, the TPU compiler chooses for the cache the order in which `attention` left the
    fresh values: it lays the cache out anew at the start and end of a chunk, and window passes read
    it in the worse order.
    """
    sizes = get_abstract_mesh().shape
    heads = "tensor" if update.shape[2] % sizes.get("tensor", 1) == 0 else None
    if math.prod(sizes.values()) == 1:
        return _in_order(update, "tpu")
    # Each device orders its own heads: XLA does not partition a layout constraint.
    spec = PartitionSpec(None, None, heads)
    return jax.shard_map(lambda x: _in_order(x, "tpu"), in_specs=spec, out_specs=spec)(update)


def _in_order(x, *platforms: str):
    """Pin an array to row-major layout on some platforms.

    On a GPU, XLA would choose one layout of the cache for full passes and another for window
    passes, and transpose it between them. XLA's CPU backend keeps row-major by itself.
    """

    def pinned(x):
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    return lax.platform_dependent(x, **dict.fromkeys(platforms, pinned), default=lambda x: x)
