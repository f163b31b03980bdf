"""Operations that every layer is made of: norm, rotary embedding, attention.

Shapes: B rows, T sequence, S positions computed now, H query heads, K key/value heads, D width,
E head width.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax


def precision_for(dtype) -> lax.Precision:
    """Matmul precision of a compute dtype: float32 means float32, on every device."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def along_last(vector, like):
    """A (D,) vector in the dtype of `like`, shaped to meet its last axis explicitly."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def rms_norm(x, weight, bias, eps: float):
    """Root-mean-square norm in float32, returned in x's dtype.

    Args:
      x: (..., D).
      weight: (D,) scale.
      bias: (D,) or None.
      eps: added to the mean square.
    """
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    out = wide.astype(x.dtype) * along_last(weight, x)
    return out if bias is None else out + along_last(bias, x)


def rope_tables(positions, head_dim: int, theta: float):
    """Cosines and sines of the rotary embedding.

    Args:
      positions: (B, S) int32, each token's place in its own row.
      head_dim: E.
      theta: base.

    Returns:
      Two (B, S, 1, E / 2) float32 arrays; the 1 broadcasts over heads.
    """
    inverse = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[:, :, None, None] * inverse[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
    """Apply the rotary embedding to (B, S, heads, E), halves layout, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(q, k, v, valid, dtype):
    """Bidirectional attention; grouped heads share keys without repeating them.

    Args:
      q: (B, S, H, E).
      k: (B, T, K, E), already rotated.
      v: (B, T, K, E).
      valid: (B, T) bool; False keys (pads) are never attended. Or (B, S, T), for each query.
      dtype: compute dtype.

    Returns:
      (B, S, H * E).
    """
    b, s, h, e = q.shape
    groups = k.shape[2]
    per_group = h // groups
    precision = precision_for(dtype)
    # One product per KV head: the queries that share it are rows of the same matrix.
    q = q.reshape(b, s, groups, per_group, e).transpose(0, 2, 3, 1, 4)
    q = (q * jnp.asarray(e**-0.5, q.dtype)).reshape(b, groups, per_group * s, e)
    scores = jnp.matmul(
        q,
        k.transpose(0, 2, 3, 1),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    # A finite floor: a slot without any key (an idle row) must not make NaNs.
    seen = valid[:, None, :] if valid.ndim == 2 else jnp.tile(valid, (1, per_group, 1))
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    # Normalised after the product, which has fewer columns (E) than there are keys (T).
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.matmul(
        weights.astype(dtype),
        v.transpose(0, 2, 1, 3),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    mixed = (mixed / total).astype(dtype).reshape(b, groups, per_group, s, e)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, s, h * e)


def take(values, columns):
    """Gather columns of (B, T, ...) by (B, W) int32 -> (B, W, ...)."""
    index = columns.reshape(columns.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)
