"""How much the positions of a row attend to each other: one map, the mean over query heads.

Shapes: B rows, T columns, S queries, W window, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, get_abstract_mesh

from leapjax.ops.primitives import precision_for, take

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Int32

SCORES = 4 * 2**20  # bytes of a row's float32 scores in a turn


def attention_map(
    q: Float[Array, "B T H E"],
    k: Float[Array, "B T G E"],
    valid: Bool[Array, "B T"] | Bool[Array, "B T T"],
    columns: Int32[Array, "B W"],
    counted: Bool[Array, "B T"] | None,
    scores: int = SCORES,
) -> tuple[Float32[Array, "B W T"], Float32[Array, "B T"] | None]:
    """Rows and column sums of a layer's attention map, one query head at a time.

    The map is the softmax over all valid keys, averaged over the query heads. A turn scores a block
    of one head's queries. So no array holds all heads, and none holds the whole map unless a row's
    map takes at most `scores` bytes. Turns depend on T alone: a row's sums are the same in every
    batch. `q` and `k` are rotated; `valid` are the keys that all queries attend to, or (B, T, T),
    one mask per query; `counted` are the queries that the column sums add up (None: there are no
    sums). Returns the map's rows of the window `columns`, [query, key], and its column sums.
    """
    local = functools.partial(_sums_over_heads, scores=scores)
    mesh, heads = get_abstract_mesh(), q.shape[2]
    tensor, fsdp = (mesh.shape.get(name, 1) for name in ("tensor", "fsdp"))
    if tensor * fsdp > 1 and not k.shape[2] % tensor:
        # A device takes turns over its own heads; one sum over devices follows.
        rows = None if q.shape[0] % fsdp else "fsdp"
        own, others = PartitionSpec(rows, None, "tensor"), PartitionSpec(rows)

        def summed(q, k, valid, columns, counted):
            own = _sums_over_heads(q, k, valid, columns, counted, scores)
            return jax.tree.map(lambda x: lax.psum(x, "tensor"), own)

        local = jax.shard_map(
            summed, in_specs=(own, own, others, others, others), out_specs=others, check_vma=False
        )
    return jax.tree.map(lambda x: x / heads, local(q, k, valid, columns, counted))


def _sums_over_heads(q, k, valid, columns, counted, scores: int):
    """`attention_map` of one device's heads, without the division by their number."""
    if counted is None:  # the window's queries are enough
        q, valid = take(q, columns), valid if valid.ndim == 2 else take(valid, columns)
        mine = jnp.arange(columns.shape[1], dtype=jnp.int32)[None, :]
        columns = jnp.broadcast_to(mine, columns.shape)
    s, heads, e = q.shape[1:]
    b, t, groups, _ = k.shape
    blocks = -(-s // min(s, max(16, scores // (4 * t))))
    size = -(-s // blocks)
    q = q * jnp.asarray(e**-0.5, q.dtype)

    def of_head(total, head):
        queries = lax.dynamic_index_in_dim(q, head, 2, keepdims=False)
        keys = lax.dynamic_index_in_dim(k, head // (heads // groups), 2, keepdims=False)

        def of_queries(total, index):
            begin = index * size
            start = jnp.minimum(begin, s - size)  # the last block may overlap the one before

            def part(x):
                return lax.dynamic_slice_in_dim(x, start, size, 1) if blocks > 1 else x

            weights = _softmax(part(queries), keys, valid if valid.ndim == 2 else part(valid))
            rows, received = total
            at = columns - start
            mine = (columns >= begin) & (at < size)
            found = take(weights, jnp.clip(at, 0, size - 1))
            rows = rows + jnp.where(mine[..., None], found, 0)
            if received is not None:
                new = part(counted) & (start + jnp.arange(size, dtype=jnp.int32) >= begin)[None, :]
                received = received + jnp.sum(jnp.where(new[..., None], weights, 0), axis=1)
            return (rows, received), None

        if blocks == 1:
            return of_queries(total, jnp.int32(0))
        return lax.scan(of_queries, total, jnp.arange(blocks, dtype=jnp.int32))[0], None

    rows = jnp.zeros((b, columns.shape[1], t), jnp.float32)
    received = None if counted is None else jnp.zeros((b, t), jnp.float32)
    total, _ = lax.scan(of_head, (rows, received), jnp.arange(heads, dtype=jnp.int32))
    return total


def _softmax(q, k, valid):
    """Softmax over the valid keys of one head's scores: (B, S, E), (B, T, E) -> (B, S, T)."""
    scores = jnp.einsum(
        "bse,bte->bst",
        q,
        k,
        precision=precision_for(q.dtype),
        preferred_element_type=jnp.float32,
    )
    mask = valid[:, None, :] if valid.ndim == 2 else valid
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
