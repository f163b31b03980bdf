"""Attention in XLA, for every platform and mesh.

Shapes: B rows, S queries, T keys, N fresh keys beside cached ones, H query heads, G key/value
heads, E head width.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec, get_abstract_mesh

from leapjax.ops.cache import Cached
from leapjax.ops.primitives import precision_for, rotate

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int32

# Bytes of float32 scores that a turn of `attend` holds. A TPU (v5e, v6e) has 128 MiB on the chip,
# for the next weights too. Few rows leave room beside their queries, keys, values and results: a
# refresh of one row takes 6 % fewer estimated cycles on v5e with turns twice as large, 4 % on v6e.
# Eight rows of LLaDA-8B do not fit anyway; there, such turns moved 18 % more.
ON_CHIP = 64 * 2**20
SCORES = 20 * 2**20
GPU_SCORES = 2**30  # the same on a GPU, where scores are in its memory and each turn has a cost


TILE = 256  # cached columns that a turn of `attend_in_tiles` reads


class Rope(NamedTuple):
    """Cosines and sines of queries and keys.

    Attributes:
      queries: two (B, S, 1, E / 2) float32.
      keys: two (B, T, 1, E / 2) float32.
    """

    queries: Any
    keys: Any


def attention(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    valid: Bool[Array, "B N"] | Bool[Array, "B S N"] | tuple[Bool[Array, "B N"], ...],
    rope: Rope | None,
    cached: Cached | None = None,
) -> tuple[Float[Array, "B S H*E"], Float[Array, "B N G E"]]:
    """Grouped-query attention to fresh keys and to cached ones, without repeating them.

    Args:
      q: (B, S, H, E).
      k: (B, N, G, E).
      v: (B, N, G, E).
      valid: (B, N) bool; False keys (pads) are never attended. Or (B, S, N), for each query; or
        several (B, N), one for each of equal parts of the queries.
      rope: rotates queries and fresh keys; None if they are rotated already.
      cached: more keys and values; None if there are none.

    Returns:
      (B, S, H * E) in the dtype of q, and the rotated fresh keys (B, N, G, E).
    """
    if isinstance(valid, tuple):
        size = q.shape[1] // len(valid)
        # In one piece: the cached keys and values are read once.
        valid = valid[0] if len(valid) == 1 else jnp.repeat(jnp.stack(valid, 1), size, 1)
    if cached is None:
        return attend(q, k, v, valid, rope)
    if rope is not None:
        q, k = rotate(q, *rope.queries), rotate(k, *rope.keys)
    return attend_both(q, k, v, valid, cached), k


def attend_both(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    valid: Bool[Array, "B N"] | Bool[Array, "B S N"],
    cached: Cached,
    scores: int = SCORES,
) -> Float[Array, "B S H*E"]:
    """Attention of a window: one softmax over cached and fresh keys, which are not concatenated.

    A turn takes as many rows as have scores that stay on the chip of a TPU.

    Args:
      q: (B, S, H, E).
      k: (B, N, G, E), already rotated.
      v: (B, N, G, E).
      valid: (B, N) bool; False keys (pads) are never attended. Or (B, S, N), for each query.
      cached: keys and values of the other columns.
      scores: most bytes of float32 scores that a turn holds on a device.

    Returns:
      (B, S, H * E) in the dtype of q.
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
    q = _by_group(q, groups)

    def product(spec, x, y):
        wide = jnp.float32
        return jnp.einsum(spec, x, y, precision=precision_for(dtype), preferred_element_type=wide)

    keys, values = (
        lax.dynamic_slice(c, (cached.layer, start, 0, 0, 0), (1, b, *c.shape[2:]))[0]
        for c in (cached.keys, cached.values)
    )
    old = _masked(product("bgse,bgte->bgst", q, keys), cached.valid, per_group)
    new = _masked(product("bgse,bnge->bgsn", q, k), valid, per_group)
    top = jnp.maximum(jnp.max(old, -1, keepdims=True), jnp.max(new, -1, keepdims=True))
    old, new = jnp.exp(old - top), jnp.exp(new - top)
    total = jnp.sum(old, -1, keepdims=True) + jnp.sum(new, -1, keepdims=True)
    mixed = product("bgst,bgte->bgse", old.astype(dtype), values)
    mixed = mixed + product("bgsn,bnge->bgse", new.astype(dtype), v)
    return _by_query((mixed / total).astype(dtype), s)


def attend_in_tiles(
    q: Float[Array, "B S H E"],
    cached: Cached,
    tiles: Int32[Array, ""],
) -> Float[Array, "B S H*E"]:
    """Attention to cached keys, `TILE` columns at a time: one softmax, computed online.

    Column j is element j mod `TILE` of its tile whatever T is, and tiles without a valid key change
    nothing. So the result depends neither on T nor on the number of tiles.

    Args:
      q: (B, S, H, E), rotated.
      cached: rotated keys, and values; `valid` is (B, S, T), and every query has a valid key in
        the first tile.
      tiles: () int32, how many are read; no key behind them is valid.

    Returns:
      (B, S, H * E) in the dtype of q.
    """
    b, s, h, e = q.shape
    groups, t = cached.keys.shape[2:4]
    size, per_group = min(TILE, t), h // groups
    precision, dtype = precision_for(q.dtype), q.dtype
    q = _by_group(q, groups)

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
        scores = _masked(product(q, keys.swapaxes(2, 3)), valid, per_group)
        highest = jnp.maximum(top, jnp.max(scores, -1, keepdims=True))
        before, scores = jnp.exp(top - highest), jnp.exp(scores - highest)
        total = total * before + jnp.sum(scores, -1, keepdims=True)
        mixed = mixed * before + product(scores.astype(dtype), values)
        return highest, total, mixed

    shape = (b, groups, per_group * s, 1)
    lowest = jnp.full(shape, jnp.finfo(jnp.float32).min)
    empty = jnp.zeros((*shape[:3], e), jnp.float32)
    _, total, mixed = lax.fori_loop(0, tiles, body, (lowest, jnp.zeros(shape), empty))
    return _by_query((mixed / total).astype(dtype), s)


def attend(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B T G E"],
    v: Float[Array, "B T G E"],
    valid: Bool[Array, "B T"] | Bool[Array, "B S T"],
    rope: Rope | None = None,
    scores: int | None = None,
) -> tuple[Float[Array, "B S H*E"], Float[Array, "B T G E"]]:
    """Grouped-query attention to fresh keys, a few heads or queries at a time.

    A turn rotates its heads, scores a block of queries against all keys, and mixes the values. Its
    scores are few enough to stay on the chip; no (S, T) array of all heads exists. How many turns
    there are depends on shapes alone. Every softmax is over all keys, so blocks change nothing.

    Args:
      q: (B, S, H, E).
      k: (B, T, G, E).
      v: (B, T, G, E).
      valid: (B, T) bool; False keys (pads) are never attended. Or (B, S, T), for each query.
      rope: rotates queries and keys; None if they are rotated already.
      scores: most bytes of float32 scores that a turn holds on a device; None is what fits on the
        chip of a TPU.

    Returns:
      (B, S, H * E) in the dtype of q, and the rotated keys (B, T, G, E).
    """
    turns = functools.partial(_on_platform, scores=scores)
    mesh = get_abstract_mesh()
    tensor, fsdp = (mesh.shape.get(name, 1) for name in ("tensor", "fsdp"))
    if tensor * fsdp == 1 or k.shape[2] % tensor:
        return turns(q, k, v, valid, rope)
    # A device takes turns over its own heads: a slice of heads that are spread would gather them.
    rows = None if q.shape[0] % fsdp else "fsdp"
    heads, others = PartitionSpec(rows, None, "tensor"), PartitionSpec(rows)
    each = jax.shard_map(
        turns, in_specs=(heads, heads, heads, others, others), out_specs=(heads, heads)
    )
    return each(q, k, v, valid, rope)


def _on_platform(q, k, v, valid, rope: Rope | None, scores: int | None):
    """`attend` on one device.

    A GPU takes few turns, each JAX's own attention. JAX chooses the implementation: cuDNN's takes
    no pads on the left without a mask of (S, T) elements, and was not measured here. float32 stays
    exact, which JAX's is not on a GPU.
    """
    exact = q.dtype == jnp.float32
    b, s, h, _ = q.shape
    if scores is None:
        scores = max(SCORES, ON_CHIP - 2 * (q.nbytes + k.nbytes))
    default = functools.partial(_in_turns, scores=scores, mix=softmax_mix)
    gpu = functools.partial(
        _in_turns, scores=max(scores, GPU_SCORES), mix=softmax_mix if exact else library_mix
    )
    groups = k.shape[2]
    if exact and turn(b, s, k.shape[1], groups, h // groups, scores) == (groups, s):
        return default(q, k, v, valid, rope)  # the same everywhere: not worth tracing twice
    return lax.platform_dependent(q, k, v, valid, rope, cuda=gpu, rocm=gpu, default=default)


def _in_turns(q, k, v, valid, rope: Rope | None, scores: int, mix):
    """`attend` on one device; `mix` is `softmax_mix` or computes the same."""
    b, s, h, e = q.shape
    t, groups = k.shape[1:3]
    per_group = h // groups
    size, block = turn(b, s, t, groups, per_group, scores)
    count = groups // size
    if count > 1 or block < s:  # gradients compute scores anew: none are kept from turn to turn
        mix = jax.checkpoint(mix, prevent_cse=False)

    # Heads stay side by side in the last axis, so that a turn's are a slice of columns.
    q, k, v = (x.reshape(b, x.shape[1], -1) for x in (q, k, v))

    def cut(x, head):
        """The heads of a turn, (B, columns, heads * E)."""
        width = x.shape[2] // count
        return lax.dynamic_slice_in_dim(x, head * width, width, 2) if count > 1 else x

    def of_heads(out, head):
        """Mix the values for some heads; `out` holds queries before and results after."""
        keys, values = (cut(x, head).reshape(b, t, -1, e) for x in (k, v))
        keys = keys if rope is None else rotate(keys, *rope.keys)

        def of_queries(out, index):
            start = jnp.minimum(index * block, s - block)

            def part(x):
                return lax.dynamic_slice_in_dim(x, start, block, 1) if block < s else x

            # Blocks that overlap read queries of the last block twice.
            own = part(cut(q if s % block else out, head)).reshape(b, block, -1, e)
            own = own if rope is None else rotate(own, *(part(x) for x in rope.queries))
            mixed = mix(own, keys, values, valid if valid.ndim == 2 else part(valid))
            if mixed.shape == out.shape:
                return mixed, None
            return lax.dynamic_update_slice(out, mixed, (0, start, head * mixed.shape[2])), None

        blocks = jnp.arange(-(-s // block), dtype=jnp.int32)
        out, _ = lax.scan(of_queries, out, blocks) if block < s else of_queries(out, jnp.int32(0))
        return out, keys

    if count == 1:
        out, keys = of_heads(q, jnp.int32(0))
        return out, keys
    out, keys = lax.scan(of_heads, q, jnp.arange(count, dtype=jnp.int32))
    return out, keys.transpose(1, 2, 0, 3, 4).reshape(b, t, groups, e)


def turn(
    rows: int, queries: int, keys: int, groups: int, per_group: int, scores: int
) -> tuple[int, int]:
    """The size of a turn of `attend`.

    Args:
      rows: B.
      queries: S.
      keys: T.
      groups: key/value heads on a device.
      per_group: query heads that share one.
      scores: most bytes of float32 scores that a turn holds.

    Returns:
      Key/value heads a turn, which divide `groups`, and queries a turn.

    >>> turn(8, 768, 768, 32, 1, 20 * 2**20), turn(1, 8448, 8448, 32, 1, 20 * 2**20)
    ((1, 768), (1, 608))
    """
    query = 4 * rows * per_group * keys  # bytes of a query's scores, one key/value head
    fit = max(1, scores // query)
    if fit >= queries:
        most = fit // queries
        return max(n for n in range(1, groups + 1) if groups % n == 0 and n <= most), queries
    blocks = -(-queries // max(fit, 16))
    even = -(-queries // blocks)
    return 1, min(queries, -(-even // 16) * 16)


def softmax_mix(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B T G E"],
    v: Float[Array, "B T G E"],
    valid: Bool[Array, "B T"] | Bool[Array, "B S T"],
) -> Float[Array, "B S H*E"]:
    """Scores, softmax and mixed values, in one piece.

    Args:
      q: (B, S, H, E), rotated.
      k: (B, T, G, E), rotated.
      v: (B, T, G, E).
      valid: as in `attend`.

    Returns:
      (B, S, H * E) in the dtype of q.
    """
    b, s, h, e = q.shape
    groups, dtype = k.shape[2], q.dtype
    per_group = h // groups
    precision = precision_for(dtype)
    scores = jnp.matmul(
        _by_group(q, groups),
        k.transpose(0, 2, 3, 1),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    # Normalised before the product: the TPU compiler would compute all exponentials twice.
    weights = jax.nn.softmax(_masked(scores, valid, per_group), axis=-1)
    mixed = jnp.matmul(
        weights.astype(dtype),
        v.transpose(0, 2, 1, 3),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return _by_query(mixed.astype(dtype), s)


def _by_group(q, groups: int):
    """Scaled queries (B, S, H, E) as (B, G, H / G * S, E).

    There is one product per KV head: the queries that share it are rows of the same matrix.
    """
    b, s, h, e = q.shape
    q = q.reshape(b, s, groups, h // groups, e).transpose(0, 2, 3, 1, 4)
    return (q * jnp.asarray(e**-0.5, q.dtype)).reshape(b, groups, -1, e)


def _by_query(mixed, queries: int):
    """Results (B, G, H / G * S, E) as (B, S, H * E)."""
    b, groups, _, e = mixed.shape
    mixed = mixed.reshape(b, groups, -1, queries, e).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(b, queries, -1)


def _masked(scores, valid, per_group: int):
    """Scores (B, G, H / G * S, T), at a finite minimum where a key is not valid.

    A row without any key (an idle slot) then gives no NaN.
    """
    mask = valid[:, None, :] if valid.ndim == 2 else jnp.tile(valid, (1, per_group, 1))
    return jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)


def library_mix(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B T G E"],
    v: Float[Array, "B T G E"],
    valid: Bool[Array, "B T"] | Bool[Array, "B S T"],
) -> Float[Array, "B S H*E"]:
    """`softmax_mix` by `jax.nn.dot_product_attention`.

    Args:
      q: (B, S, H, E), rotated.
      k: (B, T, G, E), rotated.
      v: (B, T, G, E).
      valid: as in `attend`.

    Returns:
      (B, S, H * E) in the dtype of q.
    """
    mask = valid[:, None, None, :] if valid.ndim == 2 else valid[:, None]
    with jax.numpy_dtype_promotion("standard"):  # it promotes float32
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
    return mixed.reshape(*q.shape[:2], -1)
