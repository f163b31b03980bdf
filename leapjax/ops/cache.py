"""Write fresh keys and values into a KV cache, in place where the cache is a loop carry.

Shapes: L layers, B rows, T columns, S of a window, G rows written, K KV heads, E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int32


def write_rows(
    cache: Float[Array, "L B T K E"],
    layer: int | Int32[Array, ""],
    rows: Int32[Array, " G"],
    fresh: Float[Array, "G T K E"],
) -> Float[Array, "L B T K E"]:
    """Replace whole rows of one layer.

    Args:
      cache: (L, B, T, K, E).
      layer: which of the L.
      rows: (G,) int32, each row's destination; a row out of range is dropped.
      fresh: (G, T, K, E).

    >>> cache = write_rows(jnp.zeros((2, 3, 1, 1, 1)), 1, jnp.array([2]), jnp.ones((1, 1, 1, 1)))
    >>> cache.reshape(2, 3).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    return _row_major(cache.at[jnp.int32(layer), rows].set(fresh, mode="drop"))


def write_window(
    cache: Float[Array, "L B T K E"],
    layer: int | Int32[Array, ""],
    start: Int32[Array, " B"],
    fresh: Float[Array, "B S K E"],
    replace: Bool[Array, "B S"] | None,
) -> Float[Array, "L B T K E"]:
    """Replace one contiguous window (S, K, E) in every row of one layer.

    Args:
      cache: (L, B, T, K, E).
      layer: which of the L.
      start: (B,) int32, the windows' first columns.
      fresh: (B, S, K, E).
      replace: (B, S) bool, False keeps the cached column; None replaces all.
    """
    b, s = fresh.shape[:2]
    rows = jnp.arange(b, dtype=jnp.int32)
    if replace is not None:
        columns = start[:, None] + jnp.arange(s, dtype=jnp.int32)[None, :]
        old = cache[layer, rows[:, None], columns]
        fresh = jnp.where(replace[:, :, None, None], fresh, old)
    place = jnp.stack([jnp.full((b,), layer, jnp.int32), rows, start], axis=1)
    written = lax.scatter(
        cache,
        place,
        fresh,
        lax.ScatterDimensionNumbers(
            update_window_dims=(1, 2, 3),
            inserted_window_dims=(0, 1),
            scatter_dims_to_operand_dims=(0, 1, 2),
        ),
        indices_are_sorted=True,
        unique_indices=True,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return _row_major(written)


def _row_major(cache):
    """Pin the cache to row-major layout on a GPU.

    Without this, XLA chooses one layout for full passes and another for window passes, and
    transposes the whole cache between them. XLA's CPU backend keeps row-major by itself.
    """

    def pinned(cache):
        return with_layout_constraint(cache, Layout(tuple(range(cache.ndim))))

    return lax.platform_dependent(cache, cuda=pinned, rocm=pinned, default=lambda cache: cache)
