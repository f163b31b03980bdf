"""Fresh keys and values into a KV cache, in place where the cache is a loop's carry.

Shapes: L layers, B rows, T columns, S of a window, G rows written, K KV heads, E head width.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint


def write_rows(cache, layer, rows, fresh):
    """Replace whole rows of one layer.

    Args:
      cache: (L, B, T, K, E).
      layer: which of the L.
      rows: (G,) int32, where each row goes; nowhere if out of range.
      fresh: (G, T, K, E).
    """
    return _in_order(cache.at[jnp.int32(layer), rows].set(fresh, mode="drop"))


def write_window(cache, layer, start, fresh, replace):
    """Replace a window of every row of one layer, one contiguous (S, K, E) piece a row.

    Args:
      cache: (L, B, T, K, E).
      layer: which of the L.
      start: (B,) int32, the windows' first columns.
      fresh: (B, S, K, E).
      replace: (B, S) bool, False keeps what is cached at that column; None replaces all.
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
    return _in_order(written)


def _in_order(cache):
    """A cache in the order of its axes, as it is outside of programs.

    Left free on a GPU, XLA gives full passes another order than passes over windows, and transposes
    the whole cache before and after each. On a CPU it keeps this order by itself.
    """

    def pinned(cache):
        return with_layout_constraint(cache, Layout(tuple(range(cache.ndim))))

    return lax.platform_dependent(cache, cuda=pinned, rocm=pinned, default=lambda cache: cache)
