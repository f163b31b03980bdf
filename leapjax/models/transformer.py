"""The transformer of all families as pure functions: one block, three forward passes.

    ids (B, T) -> embed -> runs of layers: [norm, attention, norm, gated MLP] x L
               -> hidden (B, T, D) -> head on chosen positions -> logits (B, W, V)

    hidden_states   the whole sequence
    refresh_states  the whole sequence; also fills a KV cache
    window_states   a window of each row, against cached keys and values

Passes of block-causal models with a cache are in `leapjax.models.block_passes`. The operations are
`leapjax.ops`; nothing here depends on the device or on the layout of weights.

Shapes: B rows, T sequence, S positions computed now, W window, V vocabulary, L layers,
H query heads, K key/value heads, D width, E head width.
Source: LLaDA (arXiv 2502.09992) and Dream (arXiv 2508.15487), both Llama-shaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from leapjax.models.attention import Rule, attention_mask
from leapjax.models.config import ModelConfig
from leapjax.models.families import param_shapes, table
from leapjax.models.weights import BIAS, NORM
from leapjax.ops import cache as kv
from leapjax.ops import xla
from leapjax.ops.arrangement import BACKENDS, as_arranged, streams_head
from leapjax.ops.attention import Rope
from leapjax.ops.mesh import split_residual
from leapjax.ops.primitives import rope_tables, take
from leapjax.ops.runs import fold
from leapjax.ops.weights import Arranged

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Bool, Float, Float32, Int32, Key

    KeysValues = tuple[Float[Array, "L B K T E"], Float[Array, "L B K T E"]]

Params = dict[str, Any]
Weights = Mapping[str, Any] | Arranged


def layer_block(
    ops: Any,
    x: Float[Array, "B S D"],
    layer: Mapping[str, Any],
    head_dim: int,
    rope: Sequence[Float32[Array, "B S 1 _"]],
    mix: Callable[..., tuple[Any, Any]],
    outputs: Int32[Array, "B W"] | None = None,
) -> tuple[Float[Array, "B S D"] | Float[Array, "B W D"], Any]:
    """One transformer block; returns the residual stream, and what `mix` returned besides.

    `mix` is attention: (q, k, v, Rope, outputs) -> (B, S or W, H * E) and whatever the caller
    keeps. `outputs` are the columns to compute beyond keys and values (None: all).
    """
    with jax.named_scope("attention"):
        own = rope
        if outputs is None:
            v, k, q = ops.heads(x, layer, ("v", "k", "q"), rope, head_dim)
        else:
            v, k = ops.heads(x, layer, ("v", "k"), rope, head_dim)
            x, *own = (take(part, outputs) for part in (x, *rope))
            (q,) = ops.heads(x, layer, ("q",), own, head_dim)
        mixed, kept = mix(q, k, v, Rope(own, rope), outputs)
        x = ops.linear(mixed, layer["o"], x)
    with jax.named_scope("mlp"):
        return ops.mlp(x, layer), kept


def mixer(
    ops: Any,
    valid: Bool[Array, "B S"] | Bool[Array, "B S S"] | tuple[Bool[Array, "B S"], ...],
    cached: kv.Cached | None = None,
) -> Callable[..., tuple[Any, Any]]:
    """Attention under masks: the `mix` of `layer_block`, which keeps rotated keys, and values.

    `valid` may be (B, S, S) too, the attention mask of the S fresh keys, or a tuple of (B, S)
    masks, one for each of equal parts of the queries. `cached` are keys and values to attend to as
    well.
    """

    def mix(q, k, v, rope, outputs=None):
        own = valid
        if outputs is not None and not isinstance(valid, tuple) and valid.ndim == 3:
            own = take(valid, outputs)
        mixed, k = ops.attention(q, k, v, own, rope, cached)
        return mixed, (k, v)

    return mix


def begin(
    params: Weights,
    config: ModelConfig,
    ids: Int32[Array, "B S"],
    positions: Int32[Array, "B S"],
    dtype: DTypeLike,
) -> tuple[Arranged, Any, Float[Array, "B S D"], Any]:
    """The start of every forward pass: weights, backend, embeddings, and cosines and sines."""
    model = as_arranged(params, config)
    rope = rope_tables(positions, config.rotated, config.rope_theta)
    return model, BACKENDS[model.backend], embed(model, config, ids, dtype), rope


def _prepare(params, config: ModelConfig, ids, positions, valid, dtype, cache=None):
    """The start of the forward passes whose masks follow from the rule.

    `valid` is (B, S) or (B, S, S) bool. `cache` has the keys and values of all layers, which
    columns of them to attend to (B, T), and their positions (B, T); None attends to nothing but the
    S positions. Returns the arranged weights, the embeddings, and one block per run, which takes
    (x, layer, index) and `outputs`.
    """
    model, ops, x, rope = begin(params, config, ids, positions, dtype)

    def block_of(rule: Rule):
        mask = attention_mask(rule, positions, positions, valid)
        if cache is not None:
            keys, values, columns, places = cache
            columns = attention_mask(rule, positions, places, columns)

        def block(x, layer, index, outputs=None):
            cached = None if cache is None else kv.Cached(keys, values, columns, index)
            return layer_block(
                ops, x, layer, config.head_dim, rope, mixer(ops, mask, cached), outputs
            )

        return block

    blocks = [block_of(run.attention) for run in config.runs]
    return model, x, blocks


def embed(
    params: Weights, config: ModelConfig, ids: Int32[Array, "B S"], dtype: DTypeLike
) -> Float[Array, "B S D"]:
    """Token embeddings, (B, S) int32 -> (B, S, D) in `dtype`."""
    x = jnp.take(as_arranged(params, config).embed, ids, axis=0)
    x = split_residual(xla.as_bfloat16(x).astype(dtype))
    return x * jnp.asarray(config.embed_scale, dtype) if config.embed_scale != 1.0 else x


def hidden_states(
    params: Weights,
    config: ModelConfig,
    ids: Int32[Array, "B T"],
    positions: Int32[Array, "B T"],
    valid: Bool[Array, "B T"] | Bool[Array, "B T T"],
    dtype: DTypeLike = jnp.float32,
    outputs: Int32[Array, "B W"] | None = None,
) -> Float[Array, "B T D"] | Float[Array, "B W D"]:
    """Whole-sequence forward pass up to (not including) the final norm and head.

    `params` are canonical (`param_shapes(config)`, any float dtype) or
    `leapjax.ops.weights.Arranged`. `positions` are rotary, those of each column in its own row.
    `valid` is False at pads; with (B, T, T) it is the attention mask of each column. `dtype`, that
    of the result, is computed in; float32 computes at full precision on every device. `outputs` are
    the columns to return (None: all); the last layer computes only keys and values of the others.
    """
    model, x, blocks = _prepare(params, config, ids, positions, valid, dtype)

    def body_of(block):
        return lambda index, layer, x, outputs: block(x, layer, index, outputs)[0]

    return fold(model, [body_of(b) for b in blocks], x, outputs)


def refresh_states(
    params: Weights,
    config: ModelConfig,
    ids: Int32[Array, "G T"],
    positions: Int32[Array, "G T"],
    valid: Bool[Array, "G T"],
    cache: KeysValues,
    rows: Int32[Array, " G"],
    dtype: DTypeLike = jnp.float32,
    outputs: Int32[Array, "G W"] | None = None,
) -> tuple[Float[Array, "G T D"] | Float[Array, "G W D"], KeysValues]:
    """Like `hidden_states`; also writes every layer's rotated keys and values into a cache.

    Each layer is written in place where the cache is a loop carry, so no second cache is held.
    `cache` has keys and values, (L, B, K, T, E) each; `rows` are the rows' places in it.
    """
    model, x, blocks = _prepare(params, config, ids, positions, valid, dtype)

    def body_of(block):
        def body(index, layer, carry, outputs):
            x, keys, values = carry
            x, (k, v) = block(x, layer, index, outputs)
            return x, *(kv.write_rows(c, index, rows, f) for c, f in ((keys, k), (values, v)))

        return body

    x, *stores = fold(model, [body_of(b) for b in blocks], (x, *cache), outputs)
    return x, tuple(stores)


def window_states(
    params: Weights,
    config: ModelConfig,
    ids: Int32[Array, "B S"],
    positions: Int32[Array, "B S"],
    valid: Bool[Array, "B T"],
    cache: KeysValues,
    start: Int32[Array, " B"],
    fresh: tuple[Int32[Array, " B"], Int32[Array, " B"]],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B S D"]:
    """Forward pass of a window of each row against cached keys and values.

    The window attends to its own fresh keys and values, and to the cache in all other columns.
    Nothing is stored: the next pass computes the window anew. `valid` says which columns may be
    attended to, `start` is the window's first column. `fresh` is two (B,) int32, the first fresh
    column and the end of the fresh ones: the window's columns before and after keep their cached
    keys and values. Those of `cache` are (L, B, K, T, E) each.
    """
    low, end = (x[:, None] for x in fresh)
    column = jnp.arange(valid.shape[1], dtype=jnp.int32)[None, :]
    is_fresh = (column >= low) & (column < end)
    window = start[:, None] + jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :]
    own = take(valid & is_fresh, window)
    # Positions count valid columns.
    places = jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    stored = (*cache, valid & ~is_fresh, places)
    model, x, blocks = _prepare(params, config, ids, positions, own, dtype, stored)

    def body_of(block):
        return lambda index, layer, x, outputs: block(x, layer, index)[0]

    return fold(model, [body_of(b) for b in blocks], x)


def head(
    params: Weights, config: ModelConfig, hidden: Float[Array, "B W D"]
) -> Float32[Array, "B W V"]:
    """Final norm and vocabulary head: logits of a window's hidden states."""
    model = as_arranged(params, config)
    with jax.named_scope("head"):
        return BACKENDS[model.backend].head(hidden, model)


def has_summary(params: Weights, config: ModelConfig) -> bool:
    """Whether `head_summary` supports these weights; it depends on the backend."""
    return streams_head(as_arranged(params, config))


def head_summary(
    params: Weights, config: ModelConfig, hidden: Float[Array, "B W D"], apart: Sequence[int]
) -> tuple[
    Float32[Array, "B W"], Int32[Array, "B W"], Float32[Array, "B W"], Float32[Array, "B W A"]
]:
    """Softmax statistics of the logits, without storing all of them, and a few separate logits.

    The weights must be such that `has_summary`. Over all ids but those `apart`: the largest logit,
    the lowest id that has it, and the sum of exp(logit - largest). Then the logits of those
    `apart`, in order.
    """
    model = as_arranged(params, config)
    with jax.named_scope("head"):
        return BACKENDS[model.backend].head_summary(hidden, model, apart)


# Matrices that write to the residual stream.
_WRITES = ("o", "down", "experts_down", "shared_down")


def init_scale(name: str, config: ModelConfig) -> float:
    """Initial standard deviation of a matrix, by its name; see `init_params`."""
    return 0.02 / (2 * config.n_layers) ** 0.5 if name in _WRITES else 0.02


def init_params(config: ModelConfig, key: Key[Array, ""], dtype: DTypeLike = jnp.float32) -> Params:
    """Random parameters for training from scratch.

    Matrices are Normal(0, 0.02); the two projections that write to the residual stream are
    scaled down by sqrt(2 L). Norms are one, biases zero.
    """
    roles = {weight.short: weight.role for weight in table(config)}
    leaves, tree = jax.tree_util.tree_flatten_with_path(
        param_shapes(config), is_leaf=lambda x: isinstance(x, tuple)
    )
    out = []
    for i, (path, shape) in enumerate(leaves):
        name = path[-1].key
        if roles[name] == NORM:
            leaf = jnp.ones(shape, dtype)
        elif roles[name] == BIAS:
            leaf = jnp.zeros(shape, dtype)
        else:
            scale = init_scale(name, config)
            leaf = (scale * jax.random.normal(jax.random.fold_in(key, i), shape)).astype(dtype)
        out.append(leaf)
    return jax.tree_util.tree_unflatten(tree, out)
