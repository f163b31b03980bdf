"""Attention in XLA, for every platform and mesh.

Shapes: B rows, S queries, T keys, N fresh keys beside cached ones, H query heads, G key/value
heads, E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from leapjax.ops.cache import Cached
from leapjax.ops.primitives import precision_for

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def attention(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    valid: Bool[Array, "B N"] | Bool[Array, "B S N"],
    cached: Cached | None = None,
) -> Float[Array, "B S H*E"]:
    """Grouped-query attention to fresh keys and to cached ones, without repeating them.

    Args:
      q: (B, S, H, E).
      k: (B, N, G, E), already rotated.
      v: (B, N, G, E).
      valid: (B, N) bool; False keys (pads) are never attended. Or (B, S, N), for each query.
      cached: more keys and values; None if there are none.

    Returns:
      (B, S, H * E) in the dtype of q.
    """
    return attend(q, k, v, valid) if cached is None else attend_both(q, k, v, valid, cached)


def attend_both(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    valid: Bool[Array, "B N"] | Bool[Array, "B S N"],
    cached: Cached,
) -> Float[Array, "B S H*E"]:
    """Attention of a window: one softmax over cached and fresh keys, which are not concatenated.

    Args:
      q: (B, S, H, E).
      k: (B, N, G, E), already rotated.
      v: (B, N, G, E).
      valid: as in `attention`.
      cached: keys and values of the other columns.

    Returns:
      (B, S, H * E) in the dtype of q.
    """
    b, s, h, e = q.shape
    groups, dtype = k.shape[2], q.dtype
    per_group = h // groups
    q = q.reshape(b, s, groups, per_group, e).transpose(0, 2, 3, 1, 4)
    q = (q * jnp.asarray(e**-0.5, q.dtype)).reshape(b, groups, per_group * s, e)

    def product(spec, x, y):
        wide = jnp.float32
        return jnp.einsum(spec, x, y, precision=precision_for(dtype), preferred_element_type=wide)

    def masked(scores, valid):
        mask = valid[:, None, :] if valid.ndim == 2 else jnp.tile(valid, (1, per_group, 1))
        return jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)

    keys, values = (
        lax.dynamic_index_in_dim(c, cached.layer, keepdims=False)
        for c in (cached.keys, cached.values)
    )
    old = masked(product("bgse,bgte->bgst", q, keys), cached.valid)
    new = masked(product("bgse,bnge->bgsn", q, k), valid)
    top = jnp.maximum(jnp.max(old, -1, keepdims=True), jnp.max(new, -1, keepdims=True))
    old, new = jnp.exp(old - top), jnp.exp(new - top)
    total = jnp.sum(old, -1, keepdims=True) + jnp.sum(new, -1, keepdims=True)
    mixed = product("bgst,bgte->bgse", old.astype(dtype), values)
    mixed = mixed + product("bgsn,bnge->bgse", new.astype(dtype), v)
    mixed = (mixed / total).astype(dtype).reshape(b, groups, per_group, s, e)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, s, h * e)


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
