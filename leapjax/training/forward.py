"""The transformer's forward pass, laid out for training on a CPU.

The same function as `leapjax.models.transformer.hidden_states` (a test holds them equal),
with activations kept two-dimensional and layers unrolled: XLA's CPU backend computes the
weight gradient of a (B, T, D) @ (D, F) product, which contracts two axes, at a third of the
speed of the flat one. Measured on 2 cores at batch 64 x 104 tokens, width 160, 6 layers:
1.66 s a step with the scanned model, 0.77 s with this.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from leapjax.models import layers, transformer
from leapjax.models.config import ModelConfig


def _linear(x, layer, name: str):
    out = x @ layer[name]
    bias = layer.get(f"{name}_bias")
    return out if bias is None else out + bias[None, :]


def _block(x, layer, config: ModelConfig, cos, sin, closed, b: int, t: int):
    """One block on flat activations (B * T, D)."""
    h, groups, e = config.n_heads, config.n_kv_heads, config.head_dim

    def heads(name, n):
        return _linear(y, layer, name).reshape(b, t, n, e)

    def batched(a):  # (B, T, n, E) -> (B * H, T, E), shared key heads repeated
        a = jnp.repeat(a, h // a.shape[2], axis=2) if a.shape[2] != h else a
        return a.transpose(0, 2, 1, 3).reshape(b * h, t, e)

    y = layers.rms_norm(x, layer["attn_norm"], layer.get("attn_norm_bias"), config.norm_eps)
    q = batched(layers.rotate(heads("q", h), cos, sin))
    k = batched(layers.rotate(heads("k", groups), cos, sin))
    v = batched(heads("v", groups))
    scores = jnp.matmul(q, k.transpose(0, 2, 1)).reshape(b, h, t, t) * jnp.float32(e**-0.5)
    scores = jnp.where(closed, jnp.finfo(jnp.float32).min, scores)
    weights = jax.nn.softmax(scores, axis=-1).reshape(b * h, t, t)
    mixed = jnp.matmul(weights, v).reshape(b, h, t, e).transpose(0, 2, 1, 3)
    x = x + _linear(mixed.reshape(b * t, h * e), layer, "o")
    y = layers.rms_norm(x, layer["mlp_norm"], layer.get("mlp_norm_bias"), config.norm_eps)
    return x + _linear(
        jax.nn.silu(_linear(y, layer, "gate")) * _linear(y, layer, "up"), layer, "down"
    )


def hidden_states(params, config: ModelConfig, ids, positions, valid):
    """Whole-sequence forward up to the final norm, in float32.

    Args:
      params: pytree of `param_shapes(config)`, float32.
      config: static shape.
      ids: (B, T) int32.
      positions: (B, T) int32, each column's place in its own row.
      valid: (B, T) bool; False marks pads, which nobody attends to.

    Returns:
      (B, T, D) float32.
    """
    b, t = ids.shape
    cos, sin = layers.rope_tables(positions, config.head_dim, config.rope_theta)
    x = transformer.embed(params, config, ids, jnp.float32).reshape(b * t, config.d_model)
    closed = ~valid[:, None, None, :]
    for i in range(config.n_layers):
        layer = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        x = _block(x, layer, config, cos, sin, closed, b, t)
    return x.reshape(b, t, config.d_model)
