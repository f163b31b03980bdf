"""The operations as native kernels (`leapjax.native`), on one CPU device in float32.

Norm, bias and residual sum are fused into the products, and so is RoPE where panels allow it.

    x (B, S, D) -> norm, products with v, k, q, rotated -> attention -> product with o, + x
                -> norm, product with gate and up, silu(gate) * up   -> product with down, + x

A layer's experts:

    x -> norm, product with the router -> choice -> norm, chosen experts, their weighted sum, + x

Shapes: as in `leapjax.ops.xla`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import struct

from leapjax import native
from leapjax.ops import xla
from leapjax.ops.attention import Rope
from leapjax.ops.cache import Cached
from leapjax.ops.primitives import rotate
from leapjax.ops.weights import GROUPS, Arranged, Norm, Router

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Int32


class PackedMatrices(struct.PyTreeNode):
    """Matrices with the same input, packed for the kernels."""

    packed: tuple[native.Packed, ...]  # one per matrix, or one with all of them side by side
    bias: Any = None  # (N,), their biases concatenated, or None
    widths: tuple[int, ...] = struct.field(pytree_node=False, default=())  # columns of each matrix
    clip: float | None = struct.field(pytree_node=False, default=None)  # as of `weights.Matrices`


def _products(x, w: PackedMatrices, start: int, stop: int, **extra) -> list:
    """Products of x with matrices `start` to `stop`."""
    ends = [sum(w.widths[:i]) for i in range(len(w.widths) + 1)]

    def bias(first, last):
        return None if w.bias is None else w.bias[ends[first] : ends[last]]

    if len(w.packed) == 1:
        matrix = w.packed[0] if w.packed[0].gated else w.packed[0].part(start, stop)
        return list(native.product(x, matrix, bias=bias(start, stop), **extra))
    extra.pop("rope", None)
    return [
        native.product(x, w.packed[i], bias=bias(i, i + 1), **extra)[0] for i in range(start, stop)
    ]


def _norm(norm: Norm) -> dict[str, Any]:
    """Arguments that fuse a norm into the product after it."""
    both = norm.weight if norm.bias is None else jnp.stack([norm.weight, norm.bias])
    return {"norm": both, "eps": norm.eps}


def heads(
    x: Float[Array, "B S D"],
    layer: Mapping[str, Any],
    names: Sequence[str],
    rope: Sequence[Float32[Array, "B S 1 _"]],
    head_dim: int,
) -> list[Float[Array, "B S _ {head_dim}"]]:
    """Values, keys or queries of S positions, rotated; else as `leapjax.ops.xla.heads`."""
    w = layer["vkq"]
    first = GROUPS["vkq"].index(names[0])
    last = first + len(names)
    products = _products(x, w, first, last, rope=rope, **_norm(layer["attn_norm"]))
    rotated = w.packed[0].heads[first:last] if len(w.packed) == 1 else [0] * len(names)
    out = [y.reshape(*x.shape[:-1], -1, head_dim) for y in products]
    if any(rotated):
        return out
    own = [
        xla.clipped(xla.head_normed(y, layer, name), layer)
        for name, y in zip(names, out, strict=True)
    ]
    return [y if name == "v" else rotate(y, *rope) for name, y in zip(names, own, strict=True)]


def rotated(x: Float[Array, "B S H E"], rope: Any) -> Float[Array, "B S H E"]:
    """See `leapjax.ops.xla.rotated`; these heads are rotated already."""
    return x


def attention(
    q: Float[Array, "B S H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    valid: Bool[Array, "B N"] | Bool[Array, "B S N"] | tuple[Bool[Array, "B N"], ...],
    rope: Rope,
    cached: Cached | None = None,
) -> tuple[Float[Array, "B S H*E"], Float[Array, "B N G E"]]:
    """As `leapjax.ops.attention.attention`, of heads that are rotated already."""
    if isinstance(valid, tuple):  # parts of the queries, one after the other
        parts = zip(jnp.split(q, len(valid), axis=1), valid, strict=True)
        mixed = [attention(part, k, v, mask, rope, cached)[0] for part, mask in parts]
        return jnp.concatenate(mixed, axis=1), k
    masks = (valid,) if cached is None else (valid, cached.valid)
    if all(mask.ndim == 2 for mask in masks):
        return native.attention(q, k, v, valid, cached), k
    return xla.attention(q, k, v, valid, None, cached)  # the kernel takes no mask per query


def linear(
    x: Float[Array, "B S K"], w: PackedMatrices, add: Float[Array, "B S N"]
) -> Float[Array, "B S N"]:
    """See `leapjax.ops.xla.linear`."""
    return _products(x, w, 0, 1, add=add)[0]


def route(
    x: Float[Array, "N D"], router: Router, norm: Norm
) -> tuple[Int32[Array, "N k"], Float32[Array, "N k"]]:
    """As `leapjax.ops.experts.route`, of the norm of x, and with packed weights."""
    rule = router.rule
    (logits,) = native.product(x, router.weight, **_norm(norm))
    return native.route(
        logits,
        router.bias,
        rule.chosen,
        score=rule.score,
        weighs=rule.bias == "weighs",
        normalize=rule.normalize,
        scale=rule.scale,
        groups=rule.groups,
        top_groups=rule.top_groups,
    )


def mlp(x: Float[Array, "B S D"], layer: Mapping[str, Any]) -> Float[Array, "B S D"]:
    """See `leapjax.ops.xla.mlp`."""
    out = x
    if "experts" in layer:
        tokens = x.reshape(-1, x.shape[-1])
        chosen = route(tokens, layer["router"], layer["mlp_norm"])
        norm = _norm(layer["mlp_norm"])
        out = native.experts(tokens, *chosen, layer["experts"], **norm, add=tokens)
        out = out.reshape(x.shape)
    if "gate_up" not in layer:  # no shared experts
        return out
    (y,) = _products(x, layer["gate_up"], 0, 2, **_norm(layer["mlp_norm"]))
    return linear(y, layer["down"], out)


def head(x: Float[Array, "B W D"], model: Arranged) -> Float32[Array, "B W V"]:
    """See `leapjax.ops.xla.head`."""
    (logits,) = native.product(x, model.head.table, **_norm(model.head.norm))
    return xla.finish_logits(logits, model.head, slice(None))


def head_summary(
    x: Float[Array, "B W D"], model: Arranged, apart: Sequence[int]
) -> tuple[
    Float32[Array, "B W"], Int32[Array, "B W"], Float32[Array, "B W"], Float32[Array, "B W A"]
]:
    """See `leapjax.ops.xla.head_summary`; the kernel never stores logits."""
    matrix, factor, bias = model.head.table, model.head.factor, model.head.bias
    bias = jnp.zeros(matrix.columns) if bias is None else bias
    norm = _norm(model.head.norm)
    return native.summary(x, matrix, bias * jnp.float32(factor), factor, apart=apart, **norm)
