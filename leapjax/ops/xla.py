"""The operations in XLA, for every platform and mesh.

Shapes: B rows, S positions computed now, T keys, W window, V vocabulary, C vocabulary of a piece,
K and N of a matrix, D width, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.ops import experts
from leapjax.ops.attention import attention as attention
from leapjax.ops.mesh import add_to_residual, gather, split_residual
from leapjax.ops.primitives import along_last, precision_for, rms_norm, rotate
from leapjax.ops.primitives import as_bfloat16 as as_bfloat16
from leapjax.ops.weights import GROUPS, Arranged, Head, Matrices, Norm

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int32

_NEG_INF = np.float32(-np.inf)


def _product(x, weight, training: bool):
    """X (..., K) @ weight (K, N), in the dtype of x."""
    weight = as_bfloat16(weight).astype(x.dtype)
    if not training:
        return jnp.matmul(x, weight, precision=precision_for(x.dtype))
    # With two leading axes, XLA's CPU backend computes the weight gradient at a third of the speed.
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], -1)


def _products(x, w: Matrices) -> list:
    """X (..., K) times each matrix, plus biases: a list of (..., N)."""
    out = []
    for i, weight in enumerate(w.weights):
        y = _product(x, weight, w.training)
        if w.scales:
            y = y * along_last(w.scales[i], y)
        out.append(y + along_last(as_bfloat16(w.biases[i]), y) if w.biases else y)
    if len(out) == len(w.widths):
        return out
    return jnp.split(out[0], np.cumsum(w.widths)[:-1].tolist(), axis=-1)


def normed(x: Float[Array, "*rows D"], norm: Norm) -> Float[Array, "*rows D"]:
    """RMS norm of x (..., D)."""
    bias = None if norm.bias is None else as_bfloat16(norm.bias)
    return rms_norm(x, as_bfloat16(norm.weight), bias, norm.eps)


def heads(
    x: Float[Array, "B S D"],
    layer: Mapping[str, Any],
    names: Sequence[str],
    rope: Sequence[Float32[Array, "B S 1 _"]],
    head_dim: int,
) -> list[Float[Array, "B S _ {head_dim}"]]:
    """Values, keys or queries of S positions, not yet rotated: norm, projection, per-head norm.

    `names` are adjacent ones of `GROUPS["vkq"]`; `rope` is not used: `attention` rotates.
    """
    first = GROUPS["vkq"].index(names[0])
    y = gather(normed(x, layer["attn_norm"]))
    w = layer["vkq"].part(first, first + len(names))
    products = _products(y, w)
    if not w.training and len(w.weights) == len(names):
        # Otherwise the TPU compiler splits heads within the product, and for that transposes the
        # weights: all layers' before the loop. A fused matrix (on a GPU) is cut without a copy.
        products = lax.optimization_barrier(products)
    shape = (*x.shape[:-1], -1, head_dim)
    return [
        clipped(head_normed(y.reshape(shape), layer, name), layer)
        for name, y in zip(names, products, strict=True)
    ]


def clipped(x: Float[Array, "*rows E"], layer: Mapping[str, Any]) -> Float[Array, "*rows E"]:
    """Queries, keys or values clamped to the model's `clip_qkv`, if it has one."""
    limit = layer["vkq"].clip
    return x if limit is None else jnp.clip(x, -limit, limit)


def rotated(
    x: Float[Array, "B S heads E"], rope: Sequence[Float32[Array, "B S 1 _"]]
) -> Float[Array, "B S heads E"]:
    """Queries or keys from `heads`, rotated by `rope`, cosines and sines (B, S, 1, R / 2) each."""
    return rotate(x, *rope)


def head_normed(
    x: Float[Array, "B S heads E"], layer: Mapping[str, Any], name: str
) -> Float[Array, "B S heads E"]:
    """Per-head norm of queries or keys (B, S, heads, E), where the model has one."""
    norm = layer.get(f"{name}_norm")
    return x if norm is None else normed(x, norm)


def linear(
    x: Float[Array, "B S K"], w: Matrices, add: Float[Array, "B S N"]
) -> Float[Array, "B S N"]:
    """X (B, S, K) times one matrix, plus `add` (B, S, N)."""
    return add_to_residual(add, _products(x, w)[0])


def mlp(x: Float[Array, "B S D"], layer: Mapping[str, Any]) -> Float[Array, "B S D"]:
    """Norm, gated MLP or mixture of experts, and residual sum of x (B, S, D)."""
    y = gather(normed(x, layer["mlp_norm"]))
    if "experts" in layer:
        x = split_residual(x + experts.mix(y, layer["router"], layer["experts"]))
    if "gate_up" not in layer:  # no shared experts
        return x
    gate, up = _products(y, layer["gate_up"])
    return linear(jax.nn.silu(gate) * up, layer["down"], x)


def head(x: Float[Array, "B W D"], model: Arranged) -> Float32[Array, "B W V"]:
    """Logits (B, W, V) float32 of hidden states x (B, W, D)."""
    table = model.embed if model.head.table is None else model.head.table
    return _logits(gather(normed(x, model.head.norm)), model.head, table, slice(None))


def _logits(y, head, table, ids: slice):
    """Normed hidden states (B, W, D) times rows `ids` of the head, (B, W, C) float32."""
    logits = jnp.einsum(
        "bwd,vd->bwv",
        y,
        as_bfloat16(table).astype(y.dtype),
        precision=precision_for(y.dtype),
        preferred_element_type=jnp.float32,
    )
    return finish_logits(logits, head, ids)


def finish_logits(
    logits: Float32[Array, "B W C"], head: Head, ids: slice
) -> Float32[Array, "B W C"]:
    """Scale and bias products with rows `ids` of the head, (B, W, C) float32."""
    if head.scales is not None:
        logits = logits * along_last(head.scales[ids], logits)
    if head.bias is not None:
        logits = logits + along_last(as_bfloat16(head.bias)[ids], logits)
    return logits if head.factor == 1.0 else logits * jnp.float32(head.factor)


def head_summary(
    x: Float[Array, "B W D"], model: Arranged, apart: Sequence[int]
) -> tuple[
    Float32[Array, "B W"], Int32[Array, "B W"], Float32[Array, "B W"], Float32[Array, "B W A"]
]:
    """Softmax statistics, computed over pieces of the head; see `transformer.head_summary`.

    The logits of a piece fit in a CPU's caches; those of the whole vocabulary would not.
    """
    y, rows = normed(x, model.head.norm), x.shape[:2]
    best, token = jnp.full(rows, _NEG_INF), jnp.zeros(rows, jnp.int32)
    total, start, own = jnp.zeros(rows, jnp.float32), 0, []
    for piece in model.head.pieces:
        stop = start + piece.shape[0]
        logits = _logits(y, model.head, piece, slice(start, stop))
        ids = jnp.arange(start, stop, dtype=jnp.int32)[None, None, :]
        # Exclude the separate ids, in the pieces that hold them.
        for number in (n for n in apart if start <= n < stop):
            own.append(logits[..., number - start])
            logits = jnp.where(ids == number, _NEG_INF, logits)
        here = jnp.max(logits, axis=-1)
        place = jnp.min(jnp.where(logits == here[..., None], ids, jnp.int32(stop - 1)), axis=-1)
        token = jnp.where(here > best, place, token)  # a tie goes to the lowest id
        top = jnp.maximum(best, here)
        # The maximum is -inf while only separate ids have been seen.
        base = jnp.where(jnp.isneginf(top), 0.0, top)
        total = total * jnp.exp(best - base) + jnp.sum(jnp.exp(logits - base[..., None]), axis=-1)
        best, start = top, stop
    return best, token, total, jnp.stack(own, axis=-1)
