"""Attention in XLA, for every platform and mesh.

Shapes: B rows, S queries, T keys, N fresh keys beside cached ones, H query heads, G key/value
heads, E head width, R rotated dimensions of a head.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, get_abstract_mesh

from leapjax.ops.cache import Cached
from leapjax.ops.cached_attention import attend_both
from leapjax.ops.primitives import precision_for, rotate
from leapjax.ops.scores import GPU_SCORES, ON_CHIP, SCORES, by_group, by_query, masked

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class Rope(NamedTuple):
    """Cosines and sines of queries and keys."""

    queries: Any  # two (B, S, 1, R / 2) float32
    keys: Any  # two (B, T, 1, R / 2) float32


def attention(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    valid: Bool[Array, "B N"] | Bool[Array, "B S N"] | tuple[Bool[Array, "B N"], ...],
    rope: Rope | None,
    cached: Cached | None = None,
) -> tuple[Float[Array, "B S H*E"], Float[Array, "B N G E"]]:
    """Grouped-query attention to fresh keys and to cached ones, without repeating them.

    `valid` is False at keys (pads) that are never attended. It may be (B, S, N), for each query, or
    several (B, N), one for each of equal parts of the queries. `rope` rotates queries and fresh
    keys (None: they are rotated already). Returns the mixed values in the dtype of q, and the
    rotated fresh keys.
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
    `valid` is False at keys (pads) that are never attended; it may be (B, S, T), for each query.
    `rope` rotates queries and keys (None: they are rotated already). `scores` is the most bytes of
    float32 scores that a turn holds on a device (None: what fits on the chip of a TPU). Returns the
    mixed values in the dtype of q, and the rotated keys.
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
    """The size of a turn of `attend`: key/value heads, which divide `groups`, and queries.

    `groups` are the key/value heads on a device, `per_group` the query heads that share one;
    `scores` is the most bytes of float32 scores that a turn holds.

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
    """Scores, softmax and mixed values of rotated q and k, in one piece, in the dtype of q."""
    b, s, h, e = q.shape
    groups, dtype = k.shape[2], q.dtype
    per_group = h // groups
    precision = precision_for(dtype)
    scores = jnp.matmul(
        by_group(q, groups),
        k.transpose(0, 2, 3, 1),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    # Normalised before the product: the TPU compiler would compute all exponentials twice.
    weights = jax.nn.softmax(masked(scores, valid, per_group), axis=-1)
    mixed = jnp.matmul(
        weights.astype(dtype),
        v.transpose(0, 2, 1, 3),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return by_query(mixed.astype(dtype), s)


def library_mix(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B T G E"],
    v: Float[Array, "B T G E"],
    valid: Bool[Array, "B T"] | Bool[Array, "B S T"],
) -> Float[Array, "B S H*E"]:
    """`softmax_mix` by `jax.nn.dot_product_attention`."""
    mask = valid[:, None, None, :] if valid.ndim == 2 else valid[:, None]
    with jax.numpy_dtype_promotion("standard"):  # it promotes float32
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
    return mixed.reshape(*q.shape[:2], -1)
