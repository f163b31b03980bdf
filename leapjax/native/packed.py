"""Packed matrices, and the operations on them, as JAX sees them.

Shapes: K rows and N columns of a matrix, P panels of C columns, B rows, S queries, T keys,
L layers, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.native.build import panel
from leapjax.native.pages import Pages


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A float32 matrix (K, N) in panels of neighbouring columns, or some columns of one.

    Attributes:
      panels: (P, K, C) float32; the last panel is filled up with zeros.
      columns: how many columns are meant.
      first: the panel that holds the first of them.
    """

    panels: jax.Array
    columns: int = dataclasses.field(metadata={"static": True})
    first: int = dataclasses.field(default=0, metadata={"static": True})

    def part(self, start: int, stop: int) -> Packed:
        """Columns from `start` up to `stop`, without copying; `start` begins a panel."""
        if start % self.panels.shape[-1]:
            raise ValueError(f"column {start} doesn't begin a panel of {self.panels.shape[-1]}")
        first = self.first + start // self.panels.shape[-1]
        return dataclasses.replace(self, columns=stop - start, first=first)


def pack(matrix: np.ndarray, device=None, pages: Pages | None = None) -> Packed:
    """Pack a matrix for this processor, which must be `available` for it.

    Args:
      matrix: (K, N), any float dtype.
      device: where to; None is JAX's default.
      pages: memory to use, for several matrices.
    """
    size = panel()
    depth, columns = matrix.shape
    count = -(-columns // size)
    panels = (pages or Pages()).empty((count, depth, size))
    whole = columns // size
    panels[:whole] = matrix[:, : whole * size].reshape(depth, whole, size).transpose(1, 0, 2)
    if whole < count:
        panels[whole] = 0
        panels[whole, :, : columns - whole * size] = matrix[:, whole * size :]
    return Packed(jax.device_put(panels, device, may_alias=True), columns)


def product(x, matrix: Packed):
    """Product x @ matrix in float32, (..., K) -> (..., N).

    Sums run over K in order: a row's result doesn't depend on how many rows there are.
    """
    out = jax.ShapeDtypeStruct((*x.shape[:-1], matrix.columns), jnp.float32)
    call = jax.ffi.ffi_call("leapjax_product", out, vmap_method="sequential")
    return call(x, matrix.panels, first=np.int64(matrix.first))


def summary(x, matrix: Packed, bias, scale: float):
    """What a softmax needs to know of scale * x @ matrix + bias, which is held nowhere.

    Args:
      x: (..., K) float32.
      matrix: (K, N), all of its columns.
      bias: (N,) float32; minus infinity bars a column.
      scale: of the product.

    Returns:
      Three arrays of shape x.shape[:-1]: the largest number (float32, minus infinity where
      nothing but barred columns), the first column it stands in (int32), and the sum of
      exponentials of all less the largest (float32). The sum's order is always the same.
    """
    count, _, size = matrix.panels.shape
    bias = jnp.pad(bias, (0, count * size - matrix.columns), constant_values=-jnp.inf)
    shape = (count, *x.shape[:-1])
    outs = [jax.ShapeDtypeStruct(shape, t) for t in (jnp.float32, jnp.int32, jnp.float32)]
    call = jax.ffi.ffi_call("leapjax_summary", outs, vmap_method="sequential")
    tops, places, sums = call(x, matrix.panels, bias, scale=np.float32(scale))
    top = jnp.max(tops, axis=0)
    # Of equals the lowest column; panels are in order.
    place = jnp.min(jnp.where(tops == top[None], places, jnp.int32(matrix.columns - 1)), axis=0)
    base = jnp.where(jnp.isneginf(top), 0.0, top)
    return top, place, jnp.sum(sums * jnp.exp(tops - base[None]), axis=0)


def attention_fits(valid, dtype) -> bool:
    """Whether `attention` covers such masks (not those that differ by query) and this dtype."""
    return valid.ndim == 2 and dtype == jnp.float32


def attention(q, keys, values, valid, layer: int):
    """Bidirectional attention in float32, as `leapjax.models.transformer.attend`.

    Keys and values are read where they are, all layers' in one array; scores stay in the caches.

    Args:
      q: (B, S, H, E).
      keys: (L, B, T, G, E), already rotated.
      values: (L, B, T, G, E).
      valid: (B, T) bool.
      layer: which of the L.

    Returns:
      (B, S, H * E).
    """
    b, s, h, e = q.shape
    out = jax.ShapeDtypeStruct((b, s, h * e), jnp.float32)
    call = jax.ffi.ffi_call("leapjax_attention", out, vmap_method="sequential")
    return call(q, keys, values, valid, layer=np.int64(layer))
