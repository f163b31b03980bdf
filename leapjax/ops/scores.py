"""Scores of grouped-query attention: their shape, their masks, how many a turn holds.

Shapes: B rows, S queries, T keys, H query heads, G key/value heads, E head width.
"""

import jax.numpy as jnp

# Bytes of float32 scores that a turn of `attend` holds. A TPU (v5e, v6e) has 128 MiB on the chip,
# for the next weights too. Few rows leave room beside their queries, keys, values and results: a
# refresh of one row takes 6 % fewer estimated cycles on v5e with turns twice as large, 4 % on v6e.
# Eight rows of LLaDA-8B do not fit anyway; there, such turns moved 18 % more.
ON_CHIP = 64 * 2**20
SCORES = 20 * 2**20
GPU_SCORES = 2**30  # the same on a GPU, where scores are in its memory and each turn has a cost


def by_group(q, groups: int):
    """Scaled queries (B, S, H, E) as (B, G, H / G * S, E).

    There is one product per KV head: the queries that share it are rows of the same matrix.
    """
    b, s, h, e = q.shape
    q = q.reshape(b, s, groups, h // groups, e).transpose(0, 2, 3, 1, 4)
    return (q * jnp.asarray(e**-0.5, q.dtype)).reshape(b, groups, -1, e)


def by_query(mixed, queries: int):
    """Results (B, G, H / G * S, E) as (B, S, H * E)."""
    b, groups, _, e = mixed.shape
    mixed = mixed.reshape(b, groups, -1, queries, e).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(b, queries, -1)


def masked(scores, valid, per_group: int):
    """Scores (B, G, H / G * S, T), at a finite minimum where a key is not valid.

    A row without any key (an idle slot) then gives no NaN.
    """
    mask = valid[:, None, :] if valid.ndim == 2 else jnp.tile(valid, (1, per_group, 1))
    return jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
