"""A transformer block whose matrices are packed for the kernels of `leapjax.native`.

The same block as `leapjax.models.transformer`'s, in float32 on one CPU. Norms, biases, the rotary
embedding (of heads as wide as whole panels), the gate and the residual sums are done by the
kernels that multiply, while the numbers are at hand:

    norm, product with values, keys and queries, rotation -> attention -> product with o, + x
    norm, product with gate and up, silu(gate) * up -> product with down, + x

Shapes: B rows, S positions computed now, T sequence, W window, H query heads, K key/value heads,
L layers, D width, E head width.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from leapjax import native
from leapjax.models.config import ModelConfig
from leapjax.models.layers import attend, rotate, take
from leapjax.models.layout import FUSED, widths


def block(x, layer, config: ModelConfig, cos, sin, valid, store=None, outputs=None):
    """One transformer block.

    Args:
      x: (B, S, D) float32.
      layer: its parameters (`leapjax.models.layout.arrange`).
      config: static shape.
      cos: (B, S, 1, E / 2) float32.
      sin: likewise.
      valid: (B, T) bool, or for each query (B, S, T).
      store: puts fresh (k, v) into a cache and gives all layers' keys and values, (L, B, T, K, E),
        and which of them to attend to; None attends to the fresh ones.
      outputs: (B, W) int32, the columns to compute beyond keys and values; None is all of them.

    Returns:
      (B, S, D) or (B, W, D), and the fresh keys and values, (B, S, K, E) each.
    """
    with jax.named_scope("attention"):
        y, norm = x, norm_of(layer, "attn_norm", config)
        names = ("v", "k", "q") if outputs is None else ("v", "k")
        v, k, *q = _heads(y, layer, names, norm, (cos, sin), config)
        if outputs is not None:
            x, y, cos, sin = (take(part, outputs) for part in (x, y, cos, sin))
            q = _heads(y, layer, ("q",), norm, (cos, sin), config)
        (keys, values), index = ((k[None], v[None]), 0) if store is None else store(k, v)
        if valid.ndim == 2:  # the kernel's masks don't differ by query
            mixed = native.attention(q[0], keys, values, valid, index)
        else:
            keys, values = (
                lax.dynamic_index_in_dim(c, index, keepdims=False) for c in (keys, values)
            )
            mixed = attend(q[0], keys, values, valid, x.dtype)
        (x,) = native.product(mixed, layer["o"], bias=layer.get("o_bias"), add=x)
    with jax.named_scope("mlp"):
        norm = norm_of(layer, "mlp_norm", config)
        (y,) = native.product(x, layer["gate_up"], bias=layer.get("gate_up_bias"), **norm)
        (x,) = native.product(y, layer["down"], bias=layer.get("down_bias"), add=x)
    return x, (k, v)


def norm_of(params, name: str, config: ModelConfig):
    """The norm that `native.product` computes first."""
    norm, bias = params[name], params.get(f"{name}_bias")
    return {"norm": norm if bias is None else jnp.stack([norm, bias]), "eps": config.norm_eps}


def _heads(x, layer, names, norm, turn, config: ModelConfig):
    """Values, keys or queries of x (B, S, D), (B, S, heads, E) each; all but values rotated.

    `names` are neighbours in `FUSED`, `turn` the cosines and sines.
    """
    if "vkq" in layer:
        first = FUSED["vkq"].index(names[0])
        matrix = layer["vkq"].part(first, first + len(names))
        bias = layer.get("vkq_bias")
        if bias is not None:
            ends = list(itertools.accumulate(widths(config, FUSED["vkq"]), initial=0))
            bias = bias[ends[first] : ends[first + len(names)]]
        products = native.product(x, matrix, bias=bias, turn=turn, **norm)
        turned = matrix.heads
    else:
        turned = [0] * len(names)
        products = [
            native.product(x, layer[name], bias=layer.get(f"{name}_bias"), **norm)[0]
            for name in names
        ]
    heads = [y.reshape(*x.shape[:2], -1, config.head_dim) for y in products]
    return [
        y if name == "v" or done else rotate(y, *turn)
        for name, y, done in zip(names, heads, turned, strict=True)
    ]
