"""The bidirectional transformer that LLaDA and Dream share, as pure functions.

    ids (B, T) -> embed -> L x [norm, attention, norm, gated MLP]  (one lax.scan)
               -> hidden (B, T, D) -> head on chosen positions -> logits (B, W, V)

Shapes: B rows, T sequence, S positions computed now, W window, V vocabulary, L layers,
H query heads, K key/value heads, G = H / K, D width, E head width.
Source: LLaDA (arXiv 2502.09992) and Dream (arXiv 2508.15487), both Llama-shaped.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from leapjax import native
from leapjax.models import packed
from leapjax.models.config import ModelConfig
from leapjax.models.layers import (
    along_last,
    attend,
    precision_for,
    rms_norm,
    rope_tables,
    rotate,
    take,
)
from leapjax.models.layout import FUSED, unpack, widths

Params = dict[str, Any]


def _linear(x, layer, name: str, dtype):
    """Product x @ layer[name] (+ bias if the layer has one), in the compute dtype."""
    out = jnp.matmul(x, layer[name].astype(dtype), precision=precision_for(dtype))
    scale = layer.get(f"{name}_scale")  # of int8 weights
    if scale is not None:
        out = out * along_last(scale, out)
    bias = layer.get(f"{name}_bias")
    return out if bias is None else out + along_last(bias, out)


def _projections(x, layer, fused: str, names, config: ModelConfig, dtype):
    """Products of x with some matrices, in one where the layer has them fused side by side.

    Args:
      x: (B, S, D).
      layer: its parameters; with `leapjax.models.layout.FUSED`, those of `fused` as one.
      fused: the name there.
      names: which of them, neighbours.
      config: static shape.
      dtype: compute dtype.

    Returns:
      A list of (B, S, width) products.
    """
    if fused not in layer:
        return [_linear(x, layer, name, dtype) for name in names]
    ends = list(itertools.accumulate(widths(config, FUSED[fused]), initial=0))
    first = FUSED[fused].index(names[0])
    start, stop = ends[first], ends[first + len(names)]
    some = {k: v[..., start:stop] for k, v in layer.items() if k.startswith(fused)}
    cuts = [end - start for end in ends[first + 1 : first + len(names)]]
    return jnp.split(_linear(x, some, fused, dtype), cuts, axis=-1)


def _block(x, layer, config: ModelConfig, cos, sin, valid, dtype, store=None, outputs=None):
    """One transformer block.

    `store` puts fresh (k, v) into a cache and gives all layers' keys and values, (L, B, T, K, E),
    and which of them to attend to; None attends to the fresh ones. `outputs` (B, W) int32 names
    the columns to compute beyond keys and values; None is all of them.
    """
    b, s, _ = x.shape
    layer = {name: unpack(leaf) for name, leaf in layer.items()}
    if isinstance(layer["o"], native.Packed):
        return packed.block(x, layer, config, cos, sin, valid, store, outputs)
    with jax.named_scope("attention"):
        y = rms_norm(x, layer["attn_norm"], layer.get("attn_norm_bias"), config.norm_eps)
        # Where all columns are computed, values, keys and queries may be one product.
        names = ("v", "k", "q") if outputs is None else ("v", "k")
        v, k, *q = _projections(y, layer, "vkq", names, config, dtype)
        v, k = (x.reshape(b, s, config.n_kv_heads, config.head_dim) for x in (v, k))
        k = rotate(k, cos, sin)
        if outputs is not None:
            x, y, cos, sin = (take(part, outputs) for part in (x, y, cos, sin))
            s = outputs.shape[1]
            q = _projections(y, layer, "vkq", ("q",), config, dtype)
        q = rotate(q[0].reshape(b, s, config.n_heads, config.head_dim), cos, sin)
        (keys, values), index = ((k[None], v[None]), 0) if store is None else store(k, v)
        keys, values = (lax.dynamic_index_in_dim(c, index, keepdims=False) for c in (keys, values))
        x = x + _linear(attend(q, keys, values, valid, dtype), layer, "o", dtype)
    with jax.named_scope("mlp"):
        y = rms_norm(x, layer["mlp_norm"], layer.get("mlp_norm_bias"), config.norm_eps)
        gate, up = _projections(y, layer, "gate_up", ("gate", "up"), config, dtype)
        y = jax.nn.silu(gate) * up
        x = x + _linear(y, layer, "down", dtype)
    return x, (k, v)


def embed(params: Params, config: ModelConfig, ids, dtype):
    """Token embeddings, (B, S) int32 -> (B, S, D) in `dtype`."""
    x = unpack(jnp.take(params["embed"], ids, axis=0)).astype(dtype)
    return x * jnp.asarray(config.embed_scale, dtype) if config.embed_scale != 1.0 else x


def hidden_states(
    params: Params, config: ModelConfig, ids, positions, valid, dtype=jnp.float32, outputs=None
):
    """Whole-sequence forward up to (not including) the final norm and head.

    Args:
      params: pytree of `param_shapes(config)`, any float dtype.
      config: static shape.
      ids: (B, T) int32.
      positions: (B, T) int32; the rotary position of each column in its own row.
      valid: (B, T) bool; False marks pads, which nobody attends to. Or (B, T, T): whom each
        column attends to.
      dtype: compute dtype; float32 computes at full precision on every device.
      outputs: (B, W) int32, the columns that somebody reads (with `valid` (B, T)); the
        last layer computes the others' keys and values only. None is all of them.

    Returns:
      (B, T, D) in `dtype`; with `outputs` (B, W, D).
    """
    cos, sin = rope_tables(positions, config.head_dim, config.rope_theta)
    layers, x = params.get("layers"), embed(params, config, ids, dtype)

    def body(x, layer, outputs=None):
        return _block(x, layer, config, cos, sin, valid, dtype, outputs=outputs)[0]

    if "layer_views" in params:
        *first, final = params["layer_views"]
        for layer in first:
            x = body(x, layer)
        return body(x, final, outputs)
    if outputs is None:
        return lax.scan(lambda x, layer: (body(x, layer), None), x, layers)[0]
    # By index: cutting the last layer off the stack would copy all the others.
    last = config.n_layers - 1
    x, _ = lax.scan(lambda x, i: (body(x, _layer(layers, i)), None), x, jnp.arange(last))
    return body(x, _layer(layers, last), outputs)


def refresh_states(
    params: Params,
    config: ModelConfig,
    ids,
    positions,
    valid,
    cache,
    rows,
    dtype=jnp.float32,
    outputs=None,
):
    """Like `hidden_states`, and every layer's keys (rotated) and values go into a cache.

    They go there layer by layer, in place where the cache is a loop's carry, so that no
    second copy of all layers' is ever held.

    Args:
      params: pytree of `param_shapes(config)`.
      config: static shape.
      ids: (G, T) int32.
      positions: (G, T) int32, rotary positions.
      valid: (G, T) bool.
      cache: (keys, values), each (L, B, T, K, E).
      rows: (G,) int32, where in the cache each row goes; nowhere if out of range.
      dtype: compute dtype.
      outputs: as for `hidden_states`.

    Returns:
      (G, T, D) or (G, W, D), and the updated cache.
    """
    cos, sin = rope_tables(positions, config.head_dim, config.rope_theta)
    views, last = params.get("layer_views"), config.n_layers - 1

    def body(index, carry, layer=None, outputs=None):
        x, keys, values = carry
        layer = _layer(params["layers"], index) if layer is None else layer
        x, (k, v) = _block(x, layer, config, cos, sin, valid, dtype, outputs=outputs)
        keys = _as_stored(keys.at[index, rows].set(k, mode="drop"))
        return x, keys, _as_stored(values.at[index, rows].set(v, mode="drop"))

    carry = (embed(params, config, ids, dtype), *cache)
    if views is None:
        carry = lax.fori_loop(0, last, body, carry)
    else:
        for i in range(last):
            carry = body(jnp.int32(i), carry, views[i])
    x, *stores = body(jnp.int32(last), carry, views[last] if views else None, outputs)
    return x, tuple(stores)


def _as_stored(cache):
    """A cache in the order of its axes, as it is outside of programs.

    Left free on a GPU, XLA gives full passes another order than passes over windows, and turns
    the whole cache around before and after each. On a CPU it keeps this one by itself.
    """

    def pinned(cache):
        return with_layout_constraint(cache, Layout(tuple(range(cache.ndim))))

    return lax.platform_dependent(cache, cuda=pinned, rocm=pinned, default=lambda cache: cache)


def _layer(layers, index):
    """One layer's parameters from the stack."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), layers)


def window_states(
    params: Params,
    config: ModelConfig,
    ids,
    positions,
    valid,
    cache,
    start,
    replace,
    dtype=jnp.float32,
):
    """Forward of a window of each row against cached keys and values.

    Fresh keys and values replace the cached ones in place, at their own columns, before
    the window attends; the cache is a loop carry, so that it is updated, not copied.

    Args:
      params: pytree of `param_shapes(config)`.
      config: static shape.
      ids: (B, S) int32, the window's tokens.
      positions: (B, S) int32, their rotary positions.
      valid: (B, T) bool; which cached columns may be attended.
      cache: (keys, values), each (L, B, T, K, E).
      start: (B,) int32, the window's first column.
      replace: (B, S) bool, False keeps what is cached at that column; None replaces all.
      dtype: compute dtype.

    Returns:
      (B, S, D) hidden states, and the updated cache.
    """
    cos, sin = rope_tables(positions, config.head_dim, config.rope_theta)
    rows, s = ids.shape
    slots = jnp.arange(rows, dtype=jnp.int32)
    places = start[:, None] + jnp.arange(s, dtype=jnp.int32)[None, :]

    def write(store, index, fresh):
        # One contiguous (S, K, E) piece per row; in place, since the store is a carry.
        if replace is not None:
            old = store[index, slots[:, None], places]
            fresh = jnp.where(replace[:, :, None, None], fresh, old)
        place = jnp.stack([jnp.full((rows,), index, jnp.int32), slots, start], axis=1)
        return lax.scatter(
            store,
            place,
            fresh,
            lax.ScatterDimensionNumbers(
                update_window_dims=(1, 2, 3),
                inserted_window_dims=(0, 1),
                scatter_dims_to_operand_dims=(0, 1, 2),
            ),
            indices_are_sorted=True,
            unique_indices=True,
            mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
        )

    def body(index, carry, layer=None):
        x, keys, values = carry
        if layer is None:
            layer = _layer(params["layers"], index)
        stores = []

        def store(k, v):
            stores[:] = [_as_stored(write(c, index, x)) for c, x in ((keys, k), (values, v))]
            return stores, index

        x, _ = _block(x, layer, config, cos, sin, valid, dtype, store)
        return (x, *stores)

    x = embed(params, config, ids, dtype)
    carry = (x, *cache)
    if "layer_views" in params:
        for i, layer in enumerate(params["layer_views"]):
            carry = body(i, carry, layer)
    else:
        carry = lax.fori_loop(0, config.n_layers, body, carry)
    x, keys, values = carry
    return x, (keys, values)


def head(params: Params, config: ModelConfig, hidden, dtype=jnp.float32):
    """Final norm and vocabulary head on a chosen window.

    Args:
      params: the model's pytree.
      config: static shape.
      hidden: (B, W, D), the positions whose logits somebody reads.
      dtype: compute dtype.

    Returns:
      (B, W, V) float32 logits.
    """
    with jax.named_scope("head"):
        if "head_packed" in params:
            norm = packed.norm_of(params, "final_norm", config)
            (logits,) = native.product(hidden, params["head_packed"], **norm)
            return _finished(params, config, logits, slice(None))
        y = _normed(params, config, hidden)
        return _logits(params, config, y, params[_table(config)], slice(None), dtype)


def head_in_pieces(params: Params, config: ModelConfig, hidden, dtype=jnp.float32):
    """Like `head`, piece by piece of the vocabulary.

    Args:
      params: the model's pytree, with `head_pieces` (`leapjax.models.layout`).
      config: static shape.
      hidden: (B, W, D).
      dtype: compute dtype.

    Yields:
      (B, W, C) float32 logits of consecutive ids, from 0.
    """
    with jax.named_scope("head"):
        y = _normed(params, config, hidden)
        start = 0
        for piece in params["head_pieces"]:
            ids = slice(start, start + piece.shape[0])
            yield _logits(params, config, y, piece, ids, dtype)
            start = ids.stop


def head_summary(params: Params, config: ModelConfig, hidden, apart: list[int]):
    """What a softmax needs to know of the logits, which are held nowhere; and some of them.

    Args:
      params: the model's pytree, with `head_packed` (`leapjax.models.layout`).
      config: static shape.
      hidden: (B, W, D) float32.
      apart: ids, in order, whose logits are given one by one and left out of the rest.

    Returns:
      Of all other ids: the largest logit, the lowest id that has it, and the sum of
      exponentials of the logits less the largest, each (B, W); and (B, W, len(apart)) logits.
    """
    with jax.named_scope("head"):
        matrix, scale = params["head_packed"], config.logit_scale
        bias = params["head_bias"] if config.head_bias else jnp.zeros(matrix.columns)
        norm = packed.norm_of(params, "final_norm", config)
        return native.summary(hidden, matrix, bias * jnp.float32(scale), scale, apart=apart, **norm)


def _table(config: ModelConfig) -> str:
    return "embed" if config.tie_embeddings else "head"


def _normed(params, config: ModelConfig, hidden):
    """The final norm, (B, W, D)."""
    bias = params.get("final_norm_bias")
    bias = None if bias is None else unpack(bias)
    return rms_norm(hidden, unpack(params["final_norm"]), bias, config.norm_eps)


def _logits(params, config: ModelConfig, y, table, ids: slice, dtype):
    """Normed hidden states (B, W, D) times rows `ids` of the head, (B, W, C) float32."""
    logits = jnp.einsum(
        "bwd,vd->bwv",
        y,
        unpack(table).astype(dtype),
        precision=precision_for(dtype),
        preferred_element_type=jnp.float32,
    )
    return _finished(params, config, logits, ids)


def _finished(params, config: ModelConfig, logits, ids: slice):
    """Products with rows `ids` of the head as logits, (B, W, C) float32."""
    if "head_scale" in params:  # of int8 weights
        logits = logits * along_last(params["head_scale"][ids], logits)
    if config.head_bias:
        logits = logits + along_last(unpack(params["head_bias"])[ids], logits)
    if config.logit_scale != 1.0:
        logits = logits * jnp.float32(config.logit_scale)
    return logits


def init_scale(name: str, config: ModelConfig) -> float:
    """Standard deviation of a matrix at the start, by its name; see `init_params`."""
    return 0.02 / (2 * config.n_layers) ** 0.5 if name in ("o", "down") else 0.02


def init_params(config: ModelConfig, key, dtype=jnp.float32) -> Params:
    """Random parameters for training from scratch.

    Normal(0, 0.02) matrices, with the two projections that write to the residual
    stream scaled down by sqrt(2 L); norms one, biases zero.

    Args:
      config: the model's shape.
      key: PRNG key.
      dtype: dtype of every leaf.
    """
    from leapjax.models.config import param_shapes

    leaves, tree = jax.tree_util.tree_flatten_with_path(
        param_shapes(config), is_leaf=lambda x: isinstance(x, tuple)
    )
    out = []
    for i, (path, shape) in enumerate(leaves):
        name = path[-1].key
        if name.endswith("norm"):
            leaf = jnp.ones(shape, dtype)
        elif name.endswith("bias"):
            leaf = jnp.zeros(shape, dtype)
        else:
            scale = init_scale(name, config)
            leaf = (scale * jax.random.normal(jax.random.fold_in(key, i), shape)).astype(dtype)
        out.append(leaf)
    return jax.tree_util.tree_unflatten(tree, out)
