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
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from leapjax import native
from leapjax.models.config import ModelConfig
from leapjax.models.layout import FUSED, unpack, widths

Params = dict[str, Any]


def precision_for(dtype) -> lax.Precision:
    """Matmul precision of a compute dtype: float32 means float32, on every device."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def _along_last(vector, like):
    """A (D,) vector in the dtype of `like`, shaped to meet its last axis explicitly."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def rms_norm(x, weight, bias, eps: float):
    """Root-mean-square norm in float32, returned in x's dtype.

    Args:
      x: (..., D).
      weight: (D,) scale.
      bias: (D,) or None.
      eps: added to the mean square.
    """
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    out = wide.astype(x.dtype) * _along_last(weight, x)
    return out if bias is None else out + _along_last(bias, x)


def rope_tables(positions, head_dim: int, theta: float):
    """Cosines and sines of the rotary embedding.

    Args:
      positions: (B, S) int32, each token's place in its own row.
      head_dim: E.
      theta: base.

    Returns:
      Two (B, S, 1, E / 2) float32 arrays; the 1 broadcasts over heads.
    """
    inverse = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[:, :, None, None] * inverse[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
    """Apply the rotary embedding to (B, S, heads, E), halves layout, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(q, k, v, valid, dtype):
    """Bidirectional attention; grouped heads share keys without repeating them.

    Args:
      q: (B, S, H, E).
      k: (B, T, K, E), already rotated.
      v: (B, T, K, E).
      valid: (B, T) bool; False keys (pads) are never attended. Or (B, S, T), for each query.
      dtype: compute dtype.

    Returns:
      (B, S, H * E).
    """
    b, s, h, e = q.shape
    groups = k.shape[2]
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
    # A finite floor: a slot without any key (an idle row) must not make NaNs.
    seen = valid[:, None, :] if valid.ndim == 2 else jnp.tile(valid, (1, per_group, 1))
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    # Normalised after the product, which has fewer columns (E) than there are keys (T).
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.matmul(
        weights.astype(dtype),
        v.transpose(0, 2, 1, 3),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    mixed = (mixed / total).astype(dtype).reshape(b, groups, per_group, s, e)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, s, h * e)


def _linear(x, layer, name: str, dtype):
    """Product x @ layer[name] (+ bias if the layer has one), in the compute dtype."""
    matrix = layer[name]
    if isinstance(matrix, native.Packed):
        out = native.product(x, matrix)
    else:
        out = jnp.matmul(x, matrix.astype(dtype), precision=precision_for(dtype))
    scale = layer.get(f"{name}_scale")  # of int8 weights
    if scale is not None:
        out = out * _along_last(scale, out)
    bias = layer.get(f"{name}_bias")
    return out if bias is None else out + _along_last(bias, out)


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
    some = {
        k: v.part(start, stop) if isinstance(v, native.Packed) else v[..., start:stop]
        for k, v in layer.items()
        if k.startswith(fused)
    }
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
    with jax.named_scope("attention"):
        y = rms_norm(x, layer["attn_norm"], layer.get("attn_norm_bias"), config.norm_eps)
        # Where all columns are computed, keys, values and queries may be one product.
        names = ("k", "v", "q") if outputs is None else ("k", "v")
        k, v, *q = _projections(y, layer, "kvq", names, config, dtype)
        k, v = (x.reshape(b, s, config.n_kv_heads, config.head_dim) for x in (k, v))
        k = rotate(k, cos, sin)
        if outputs is not None:
            x, y, cos, sin = (_columns(part, outputs) for part in (x, y, cos, sin))
            s = outputs.shape[1]
            q = _projections(y, layer, "kvq", ("q",), config, dtype)
        q = rotate(q[0].reshape(b, s, config.n_heads, config.head_dim), cos, sin)
        (keys, values), index = ((k[None], v[None]), 0) if store is None else store(k, v)
        if isinstance(layer["o"], native.Packed) and native.attention_fits(valid, dtype):
            mixed = native.attention(q, keys, values, valid, index)
        else:
            own = [lax.dynamic_index_in_dim(c, index, keepdims=False) for c in (keys, values)]
            mixed = attend(q, own[0], own[1], valid, dtype)
        x = x + _linear(mixed, layer, "o", dtype)
    with jax.named_scope("mlp"):
        y = rms_norm(x, layer["mlp_norm"], layer.get("mlp_norm_bias"), config.norm_eps)
        gate, up = _projections(y, layer, "gate_up", ("gate", "up"), config, dtype)
        y = jax.nn.silu(gate) * up
        x = x + _linear(y, layer, "down", dtype)
    return x, (k, v)


def _columns(x, places):
    """Columns (B, W) of an array (B, T, ...)."""
    return jnp.take_along_axis(x, places.reshape(places.shape + (1,) * (x.ndim - 2)), axis=1)


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
    columns = start[:, None] + jnp.arange(s, dtype=jnp.int32)[None, :]

    def write(store, index, fresh):
        # One contiguous (S, K, E) piece per row; in place, since the store is a carry.
        if replace is not None:
            old = store[index, slots[:, None], columns]
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
        y = _normed(params, config, hidden)
        table = params.get("head_packed", params[_table(config)])
        return _logits(params, config, y, table, slice(None), dtype)


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
        y, matrix = _normed(params, config, hidden), params["head_packed"]
        bias = unpack(params["head_bias"]) if config.head_bias else jnp.zeros(matrix.columns)
        ids, scale = np.asarray(apart), jnp.float32(config.logit_scale)
        rest = native.summary(y, matrix, (bias * scale).at[ids].set(-jnp.inf), config.logit_scale)
        rows = unpack(params[_table(config)])[ids]
        some = jnp.einsum("bwd,kd->bwk", y, rows, precision=precision_for(y.dtype))
        return *rest, (some + bias[None, None, ids]) * scale


def _table(config: ModelConfig) -> str:
    return "embed" if config.tie_embeddings else "head"


def _normed(params, config: ModelConfig, hidden):
    """The final norm, (B, W, D)."""
    bias = params.get("final_norm_bias")
    bias = None if bias is None else unpack(bias)
    return rms_norm(hidden, unpack(params["final_norm"]), bias, config.norm_eps)


def _logits(params, config: ModelConfig, y, table, ids: slice, dtype):
    """Normed hidden states (B, W, D) times rows `ids` of the head, (B, W, C) float32."""
    if isinstance(table, native.Packed):
        logits = native.product(y, table)
    else:
        logits = jnp.einsum(
            "bwd,vd->bwv",
            y,
            unpack(table).astype(dtype),
            precision=precision_for(dtype),
            preferred_element_type=jnp.float32,
        )
    if "head_scale" in params:  # of int8 weights
        logits = logits * _along_last(params["head_scale"][ids], logits)
    if config.head_bias:
        logits = logits + _along_last(unpack(params["head_bias"])[ids], logits)
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
