"""Attention to cached keys and values in XLA, in turns that read them once.

    attend_both       a window of each row: cached and fresh keys, some rows a turn
    attend_in_tiles   a piece of a prompt, whose keys are cached already, some columns a turn

Shapes: B rows, S queries, T cached columns, N fresh keys, H query heads, G key/value heads, E head
width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import get_abstract_mesh

from leapjax.ops.cache import Cached
from leapjax.ops.primitives import precision_for
from leapjax.ops.scores import SCORES, by_group, by_query, masked

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int32

TILE = 256  # cached columns that a turn of `attend_in_tiles` reads


def attend_both(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    valid: Bool[Array, "B N"] | Bool[Array, "B S N"],
    cached: Cached,
    scores: int = SCORES,
) -> Float[Array, "B S H*E"]:
    """Attention of a window: one softmax over cached and fresh keys, which are not concatenated.

    A turn takes as many rows as have scores that stay on the chip of a TPU. `k` is rotated already.
    `valid` is False at keys (pads) that are never attended; it may be (B, S, N), for each query.
    `cached` has the keys and values of the other columns; `scores` is the most bytes of float32
    scores that a turn holds on a device. The result is in the dtype of q.
    """
    b, s, h, _ = q.shape
    mesh = get_abstract_mesh().shape
    tensor = mesh.get("tensor", 1)
    heads = h if k.shape[2] % tensor else h // tensor
    fit = max(scores // (4 * s * heads * (cached.keys.shape[3] + k.shape[1])), 1)
    count = -(-b // fit)

    def whole(q, k, v, valid, cached):
        return _both(q, k, v, valid, cached, jnp.int32(0))

    def turns(q, k, v, valid, cached):
        size = -(-b // count)

        def turn(out, index):
            start = jnp.minimum(index * size, b - size)  # the last turn may compute rows again

            def part(x):
                return lax.dynamic_slice_in_dim(x, start, size, 0)

            own = cached._replace(valid=part(cached.valid))
            mixed = _both(part(q), part(k), part(v), part(valid), own, start)
            return lax.dynamic_update_slice_in_dim(out, mixed, start, 0), None

        out = jnp.zeros((b, s, h * q.shape[3]), q.dtype)
        return lax.scan(turn, out, jnp.arange(count, dtype=jnp.int32))[0]

    if count == 1 or mesh.get("fsdp", 1) > 1:  # rows that are spread have no turns
        return whole(q, k, v, valid, cached)
    what = (q, k, v, valid, cached)
    return lax.platform_dependent(*what, cuda=whole, rocm=whole, default=turns)


def _both(q, k, v, valid, cached: Cached, start):
    """`attend_both` of the rows from `start` on, whose places in the cache these are."""
    b, s, h, _ = q.shape
    groups, dtype = k.shape[2], q.dtype
    per_group = h // groups
    q = by_group(q, groups)

    def product(spec, x, y):
        wide = jnp.float32
        return jnp.einsum(spec, x, y, precision=precision_for(dtype), preferred_element_type=wide)

    keys, values = (
        lax.dynamic_slice(c, (cached.layer, start, 0, 0, 0), (1, b, *c.shape[2:]))[0]
        for c in (cached.keys, cached.values)
    )
    old = masked(product("bgse,bgte->bgst", q, keys), cached.valid, per_group)
    new = masked(product("bgse,bnge->bgsn", q, k), valid, per_group)
    top = jnp.maximum(jnp.max(old, -1, keepdims=True), jnp.max(new, -1, keepdims=True))
    old, new = jnp.exp(old - top), jnp.exp(new - top)
    total = jnp.sum(old, -1, keepdims=True) + jnp.sum(new, -1, keepdims=True)
    mixed = product("bgst,bgte->bgse", old.astype(dtype), values)
    mixed = mixed + product("bgsn,bnge->bgse", new.astype(dtype), v)
    return by_query((mixed / total).astype(dtype), s)


def attend_in_tiles(
    q: Float[Array, "B S H E"],
    cached: Cached,
    tiles: Int32[Array, ""],
) -> Float[Array, "B S H*E"]:
    """Attention to cached keys, `TILE` columns at a time: one softmax, computed online.

    Column j is element j mod `TILE` of its tile whatever T is, and tiles without a valid key change
    nothing. So the result depends neither on T nor on the number of tiles. `q` is rotated, `valid`
    of `cached` is (B, S, T), and every query has a valid key in the first tile. `tiles` are read;
    no key behind them is valid. The result is in the dtype of q.
    """
    b, s, h, e = q.shape
    groups, t = cached.keys.shape[2:4]
    size, per_group = min(TILE, t), h // groups
    precision, dtype = precision_for(q.dtype), q.dtype
    q = by_group(q, groups)

    def product(x, y):
        return jnp.matmul(x, y, precision=precision, preferred_element_type=jnp.float32)

    def body(tile, carry):
        top, total, mixed = carry
        at = tile * np.int32(size)
        start = jnp.minimum(at, np.int32(t - size))

        def cut(x, axis):
            x = lax.dynamic_slice_in_dim(x, start, size, axis)
            # The last tile begins where it fits: put its columns into their places.
            x = jnp.concatenate([x, x], axis)
            return lax.dynamic_slice_in_dim(x, at - start, size, axis)

        keys, values = (
            cut(lax.dynamic_index_in_dim(c, cached.layer, keepdims=False), 2)
            for c in (cached.keys, cached.values)
        )
        exists = (at + jnp.arange(size, dtype=jnp.int32) < t)[None, None, :]
        valid = cut(cached.valid, 2) & exists
        scores = masked(product(q, keys.swapaxes(2, 3)), valid, per_group)
        highest = jnp.maximum(top, jnp.max(scores, -1, keepdims=True))
        before, scores = jnp.exp(top - highest), jnp.exp(scores - highest)
        total = total * before + jnp.sum(scores, -1, keepdims=True)
        mixed = mixed * before + product(scores.astype(dtype), values)
        return highest, total, mixed

    shape = (b, groups, per_group * s, 1)
    lowest = jnp.full(shape, jnp.finfo(jnp.float32).min)
    empty = jnp.zeros((*shape[:3], e), jnp.float32)
    _, total, mixed = lax.fori_loop(0, tiles, body, (lowest, jnp.zeros(shape), empty))
    return by_query((mixed / total).astype(dtype), s)
