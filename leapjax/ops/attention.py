"""Attention in XLA, for every platform and mesh.

Shapes: B rows, S positions computed now, T keys, L layers, H query heads, G key/value heads,
E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from leapjax.ops.primitives import precision_for

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int32


def attention(
    q: Float[Array, "B S H E"],
    keys: Float[Array, "L B T G E"],
    values: Float[Array, "L B T G E"],
    valid: Bool[Array, "B T"] | Bool[Array, "B S T"],
    index: int | Int32[Array, ""],
) -> Float[Array, "B S H*E"]:
    """Grouped-query attention over all keys, without repeating them.

    Args:
      q: (B, S, H, E).
      keys: (L, B, T, G, E), already rotated.
      values: (L, B, T, G, E).
      valid: (B, T) bool; False keys (pads) are never attended. Or (B, S, T), for each query.
      index: which of the L layers.

    Returns:
      (B, S, H * E) in the dtype of q.
    """
    keys, values = (lax.dynamic_index_in_dim(c, index, keepdims=False) for c in (keys, values))
    return attend(q, keys, values, valid)


def attend(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B T G E"],
    v: Float[Array, "B T G E"],
    valid: Bool[Array, "B T"] | Bool[Array, "B S T"],
) -> Float[Array, "B S H*E"]:
    """Attention of one layer.

    Args:
      q: (B, S, H, E).
      k: (B, T, G, E), already rotated.
      v: (B, T, G, E).
      valid: as in `attention`.

    Returns:
      (B, S, H * E) in the dtype of q.
    """
    b, s, h, e = q.shape
    groups, dtype = k.shape[2], q.dtype
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
    # A finite minimum, so that a row without any key (an idle slot) gives no NaN.
    mask = valid[:, None, :] if valid.ndim == 2 else jnp.tile(valid, (1, per_group, 1))
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    # Normalise after the product: E columns are fewer than T.
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.matmul(
        weights.astype(dtype),
        v.transpose(0, 2, 1, 3),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    mixed = (mixed / total).astype(dtype).reshape(b, groups, per_group, s, e)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, s, h * e)
