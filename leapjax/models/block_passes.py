"""Forward passes of block-causal models against a KV cache.

    block_states    a few blocks of each row; also returns their keys and values
    prefill_states  a piece of a prompt; fills the cache

Shapes: B rows, G rows of a prefill, T cached columns, S columns computed now, L layers, H query
heads, K key/value heads, D width, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.models.attention import Rule, attention_mask
from leapjax.models.config import ModelConfig
from leapjax.models.transformer import begin, layer_block, mixer
from leapjax.ops import cache as kv
from leapjax.ops.cached_attention import TILE, attend_in_tiles
from leapjax.ops.runs import fold

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Bool, Float, Int32

    from leapjax.models.transformer import Weights

    KeysValues = tuple[Float[Array, "L G K T E"], Float[Array, "L G K T E"]]
    CachedRows = tuple[Float[Array, "L N K T E"], Float[Array, "L N K T E"]]


def block_states(
    params: Weights,
    config: ModelConfig,
    ids: Int32[Array, "B S"],
    positions: Int32[Array, "B S"],
    fresh: Sequence[Bool[Array, "B S"]],
    cache: CachedRows,
    stored: Bool[Array, "B T"],
    dtype: DTypeLike = jnp.float32,
    places: Int32[Array, " B"] | None = None,
) -> tuple[Float[Array, "B S D"], tuple[Float[Array, "L B S K E"], Float[Array, "L B S K E"]]]:
    """Forward pass of a few blocks of each row, under block-causal attention.

    `fresh` says for each block of the window, (B, S) bool, which of the window's columns it attends
    to; `stored` are the cached columns that the whole window attends to. The keys and values of
    `cache` are those of N rows, (L, N, K, T, E) each; `places` are the rows' in it (None: N is B).
    Returns the hidden states and the window's rotated keys and values.
    """
    model, ops, x, rope = begin(params, config, ids, positions, dtype)
    shape = (config.n_layers, *ids.shape, config.n_kv_heads, config.head_dim)
    masks = tuple(fresh)

    def body(index, layer, carry, outputs):
        x, *kept = carry
        cached = kv.Cached(*cache, stored, index)
        mix = mixer(ops, masks, cached if places is None else kv.of_rows(cached, places))
        x, own = layer_block(ops, x, layer, config.head_dim, rope, mix)
        update = lax.dynamic_update_index_in_dim
        return x, *(update(all_, one, index, 0) for all_, one in zip(kept, own, strict=True))

    empty = jnp.zeros(shape, x.dtype)
    x, keys, values = fold(model, [body] * len(config.runs), (x, empty, empty))
    return x, (keys, values)


def prefill_states(
    params: Weights,
    config: ModelConfig,
    ids: Int32[Array, "G S"],
    positions: Int32[Array, "G S"],
    rows: KeysValues,
    start: Int32[Array, ""],
    dtype: DTypeLike = jnp.float32,
) -> KeysValues:
    """Store keys and values of S columns, under block-causal attention.

    The columns are whole blocks, and the cache holds the columns before. Each layer stores its
    fresh keys first and then attends to the cache alone, in tiles of its columns. So the keys and
    values of a column depend neither on where the piece begins nor on the columns T of the cache.
    `ids` are the tokens of columns `start` to `start` + S, `rows` the keys and values of these rows
    alone, (L, G, K, T, E) each. Returns `rows` with the S columns replaced.
    """
    model, ops, x, rope = begin(params, config, ids, positions, dtype)
    column = jnp.arange(rows[0].shape[3], dtype=jnp.int32)[None, :]
    begins = positions[:, :1] - start  # position of column 0
    everything = jnp.ones((ids.shape[0], column.shape[1]), bool)
    tiles = (start + np.int32(ids.shape[1] + TILE - 1)) // np.int32(TILE)

    def body_of(rule: Rule):
        mask = attention_mask(rule, positions, column + begins, everything)

        def body(index, layer, carry, outputs):
            x, *stores = carry

            def mix(q, k, v, rope, outputs=None):
                k = ops.rotated(k, rope.keys)
                place = (index, 0, 0, start, 0)
                keys, values = (
                    lax.dynamic_update_slice(store, one.transpose(0, 2, 1, 3)[None], place)
                    for store, one in zip(stores, (k, v), strict=True)
                )
                q, cached = ops.rotated(q, rope.queries), kv.Cached(keys, values, mask, index)
                return attend_in_tiles(q, cached, tiles), (keys, values)

            x, stores = layer_block(ops, x, layer, config.head_dim, rope, mix)
            return x, *stores

        return body

    bodies = [body_of(run.attention) for run in config.runs]
    _, keys, values = fold(model, bodies, (x, *rows))
    return keys, values
