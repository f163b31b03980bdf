"""Mixtures of experts: the router, and the product of each token with the experts it chose.

    x (N, D) -> route: experts (N, k), weights (N, k) -> pairs (token, expert), sorted by expert
             -> grouped product -> weighted sum over a token's experts (N, D)

A token's experts depend on that token alone: no expert has a capacity, and no token is dropped. Its
sum runs over its experts in the order of the router's choice.

The grouped product reads only the experts that a token chose, in place: a layer's experts are
addressed within the stack of all layers, because a slice of 1 GB would be copied first. On a TPU it
is `lax.ragged_dot`, which the compiler turns into one kernel. Other compilers multiply with every
expert there, so they go through tiles of pairs instead, one expert a tile (`in_tiles`).

Sources: GShard's top-k routing (arXiv 2006.16668) without capacity; groups and biased choice as
DeepSeek-V3's (arXiv 2412.19437); sorted pairs as MegaBlocks (arXiv 2211.15841).

Shapes: B rows, S positions, N tokens, k experts a token, M = N k pairs, X experts, G groups, D
width, F inner width of an expert, L layers of a stack.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec, get_abstract_mesh

from leapjax.ops.mesh import axes_of
from leapjax.ops.primitives import as_bfloat16, precision_for
from leapjax.ops.weights import ExpertMatrices, Router

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int32

# A layer whose experts have at most this many weights is computed as one dense product.
DENSE_UP_TO = 2**15
# Pairs of a tile, at least and at most. A tile reads an expert's weights once.
TILE = (8, 128)


def route(
    x: Float[Array, "N D"], router: Router
) -> tuple[Int32[Array, "N k"], Float32[Array, "N k"]]:
    """Choose each token's experts from the normed residual stream; all in float32.

    Returns the experts, best first, ties to the lowest, and their weights.

    >>> from leapjax.models.config import Experts
    >>> router = Router(jnp.eye(3), None, Experts(count=3, chosen=2, hidden_size=1, normalize=True))
    >>> experts, weights = route(jnp.log(jnp.array([[1.0, 6.0, 2.0]])), router)
    >>> experts.tolist(), [round(weight, 3) for weight in weights[0].tolist()]
    ([[1, 2]], [0.75, 0.25])
    """
    rule = router.rule
    weight = as_bfloat16(router.weight).astype(jnp.float32)
    logits = jnp.matmul(x.astype(jnp.float32), weight, precision=lax.Precision.HIGHEST)
    score = jax.nn.softmax(logits) if rule.score == "softmax" else jax.nn.sigmoid(logits)
    biased = score
    if router.bias is not None:
        biased = score + as_bfloat16(router.bias).astype(jnp.float32)[None, :]
    if rule.top_groups < rule.groups:
        groups = biased.reshape(len(x), rule.groups, -1)
        best = jnp.sum(lax.top_k(groups, 2)[0], axis=-1)
        allowed = _rank(best) < rule.top_groups
        groups = jnp.where(allowed[:, :, None], groups, -jnp.inf)
        candidates = groups.reshape(biased.shape)
    else:
        candidates = biased
    _, chosen = lax.top_k(candidates, rule.chosen)
    weights = jnp.take_along_axis(biased if rule.bias == "weighs" else score, chosen, axis=1)
    if rule.normalize:
        weights = weights / (jnp.sum(weights, axis=1, keepdims=True) + np.float32(1e-20))
    return chosen.astype(jnp.int32), weights * np.float32(rule.scale)


def _rank(score):
    """(N, G) -> (N, G) int32 from 0, best first; ties to the left."""
    ahead = score[:, None, :] > score[:, :, None]
    place = jnp.arange(score.shape[1], dtype=jnp.int32)
    earlier = place[None, None, :] < place[None, :, None]
    ties = (score[:, None, :] == score[:, :, None]) & earlier
    return jnp.sum(ahead | ties, axis=2, dtype=jnp.int32)


def load_loss(x: Float[Array, "B S D"], router: Router) -> Float32[Array, ""]:
    """How uneven the load of the experts is: X times the sum over experts of f p.

    f is the share of all choices that fall on an expert, p its mean score; where both are even, the
    loss is 1. Gradients reach p alone. Source: Switch Transformers (arXiv 2101.03961, equation 4)
    for one choice a token; k choices as GShard (arXiv 2006.16668). Pads count, too. The router's
    scores have to be a softmax.
    """
    tokens = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    score = jax.nn.softmax(tokens @ router.weight.astype(jnp.float32))
    chosen, _ = route(tokens, router)
    hits = jnp.zeros(router.rule.count, jnp.float32).at[chosen.ravel()].add(1.0)
    share = lax.stop_gradient(hits / np.float32(chosen.size))
    return np.float32(router.rule.count) * jnp.sum(share * jnp.mean(score, axis=0))


@jax.custom_vjp
def with_balance(x, router: Router):
    """Its arguments, through which `router.balance` times the gradient of `load_loss` flows back.

    The loss of the run is not changed, its gradient is: no layer has to hand its load upwards.
    """
    return x, router


def _balance_forward(x, router):
    return (x, router), (x, router)


def _balance_backward(kept, gradient):
    x, router = kept
    added = jax.grad(load_loss, argnums=(0, 1))(x, router)
    return jax.tree.map(lambda g, a: g + np.float32(router.balance) * a, gradient, added)


with_balance.defvjp(_balance_forward, _balance_backward)


def mix(x: Float[Array, "B S D"], router: Router, experts: ExpertMatrices) -> Float[Array, "B S D"]:
    """The weighted sum of each token's experts.

    On a mesh the experts are split over `expert` and `fsdp`, their inner width over `tensor`. A
    device computes its experts for all tokens, and one sum over devices follows. x is the normed
    residual stream, with all of D on each device; the result is split like the residual stream that
    it is added to.
    """
    if router.balance:
        x, router = with_balance(x, router)
    mesh = get_abstract_mesh()
    if mesh.size == 1 or not mesh.shape:
        return _mix(x, router, experts, np.int32(0))
    rows = axes_of("rows", x.shape[0], mesh)
    split = axes_of("experts", experts.count, mesh)
    inner = axes_of("mlp", experts.gate.shape[-1], mesh)
    lead = (None,) * (experts.gate.ndim - 3)
    wide, tall = (
        PartitionSpec(*lead, split or None, *axes)
        for axes in ((None, inner or None), (inner or None, None))
    )
    scales = tuple(
        PartitionSpec(*lead, split or None, *axes) for axes in ((inner or None,),) * 2 + ((None,),)
    )
    placed = experts.replace(
        gate=wide,
        up=wide,
        down=tall,
        scales=scales if experts.scales else (),
        layer=None if experts.layer is None else PartitionSpec(),
    )
    spread = PartitionSpec(rows or None, None, None)
    # Rows that are split over an axis which splits experts too meet all experts of that axis.
    meet = tuple(axis for axis in rows if axis in split)
    # The residual stream that the sum is added to is split: each device needs only its part.
    kept = inner if inner == axes_of("residual", x.shape[-1], mesh) else ()

    def local(x, router, experts):
        for axis in meet:
            x = lax.all_gather(x, axis, tiled=True)
        first = np.int32(0)
        for axis in split:
            first = first * mesh.shape[axis] + lax.axis_index(axis)
        out = _mix(x, router, experts, first * np.int32(experts.count))
        for place, axes in ((2, kept), (0, meet)):
            for axis in axes:
                out = lax.psum_scatter(out, axis, scatter_dimension=place, tiled=True)
        others = tuple(axis for axis in (*split, *inner) if axis not in (*meet, *kept))
        return lax.psum(out, others) if others else out

    each = jax.shard_map(
        local,
        in_specs=(spread, jax.tree.map(lambda _: PartitionSpec(), router), placed),
        out_specs=PartitionSpec(rows or None, None, kept or None),
        check_vma=False,
    )
    return each(x, router, experts)


def _mix(x, router: Router, experts: ExpertMatrices, first):
    """`mix` on one device, whose experts are those from `first` on."""
    tokens = x.reshape(-1, x.shape[-1])
    with jax.named_scope("router"):
        chosen, weights = route(tokens, router)
    with jax.named_scope("experts"):
        return product(tokens, chosen - first, weights, experts).reshape(x.shape)


def product(
    x: Float[Array, "N D"],
    chosen: Int32[Array, "N k"],
    weights: Float32[Array, "N k"],
    experts: ExpertMatrices,
) -> Float[Array, "N D"]:
    """The weighted sum of chosen experts, by the method that suits platform and shape.

    Numbers that are no expert here (on another device) add nothing. The sum is in float32, the
    result in the dtype of x.
    """
    if experts.size <= DENSE_UP_TO:
        return dense(x, chosen, weights, experts)
    if experts.training:
        return in_groups(x, chosen, weights, experts)
    return lax.platform_dependent(x, chosen, weights, experts, tpu=in_groups, default=in_tiles)


def dense(x, chosen, weights, experts: ExpertMatrices):
    """`product` by all experts of every token, for tiny shapes."""
    own = experts.of_layer()
    number = jnp.arange(experts.count, dtype=jnp.int32)
    share = jnp.where(
        chosen[:, :, None] == number[None, None, :], weights[:, :, None], 0.0
    )  # (N, k, X)
    y = _gated(functools.partial(_einsum, "nd,xdf->xnf"), x, own)
    y = _einsum("xnf,xfd->xnd", y, own.down, own.scale(2))
    picked = jnp.einsum("nkx,xnd->nkd", share, y.astype(jnp.float32), precision="highest")
    return _sum_in_order(picked).astype(x.dtype)


def in_groups(x, chosen, weights, experts: ExpertMatrices):
    """`product` by `lax.ragged_dot` over the stack of layers; other layers' groups are empty."""
    n, k = chosen.shape
    order, own = _sorted(chosen, experts.count)
    groups = math.prod(experts.gate.shape[:-2])  # experts of all layers
    target = jnp.where(own, chosen + experts.first(), np.int32(groups))
    sizes = jnp.zeros(groups, jnp.int32).at[target.ravel()].add(1, mode="drop")

    number = jnp.arange(experts.count, dtype=jnp.int32)
    expert = (chosen.ravel()[order][:, None] == number[None, :]).astype(x.dtype)  # (M, X) of pairs

    def times(x, weight, scale):
        flat = as_bfloat16(weight).reshape(-1, *weight.shape[-2:])
        exact = precision_for(x.dtype)
        if scale is None:
            return lax.ragged_dot(x, flat.astype(x.dtype), sizes, precision=exact)
        y = lax.ragged_dot(x, flat, sizes, precision=exact, preferred_element_type=x.dtype)
        # The scales of each pair as an exact product: gathered, they would go through memory.
        return y * jnp.matmul(expert, scale.astype(x.dtype), precision=exact)

    y = _gated(times, x[order // k], experts.replace(scales=experts.of_layer().scales))
    y = times(y, experts.down, experts.of_layer().scale(2))
    return _weighted(y, order, weights, own).astype(x.dtype)


def in_tiles(x, chosen, weights, experts: ExpertMatrices):
    """`product` over tiles of sorted pairs, one expert a tile, as many tiles as there need be."""
    n, k = chosen.shape
    pairs, count = n * k, experts.count
    order, own = _sorted(chosen, count)
    number = jnp.arange(count, dtype=jnp.int32)
    sizes = jnp.sum(chosen.ravel()[:, None] == number[None, :], 0, jnp.int32)
    low, high = TILE
    fair = 2 * pairs // count  # twice a fair share: most experts then need one tile
    tile = min(max(low, 1 << (max(fair, 1) - 1).bit_length()), high, max(low, pairs))
    ends = jnp.cumsum(sizes, dtype=jnp.int32)
    tiles = (sizes + np.int32(tile - 1)) // np.int32(tile)
    last = jnp.cumsum(tiles, dtype=jnp.int32)  # number of tiles up to and with each expert
    token = jnp.concatenate([order // k, jnp.zeros(tile, jnp.int32)])
    out = jnp.zeros((pairs + tile, x.shape[1]), x.dtype)

    def turn(carry):
        i, out = carry
        expert = jnp.sum(last <= i, dtype=jnp.int32)
        before = i - (last[expert] - tiles[expert])
        start = ends[expert] - sizes[expert] + before * np.int32(tile)
        rows = x[lax.dynamic_slice_in_dim(token, start, tile)]
        one = experts.expert(expert)
        y = _gated(lambda a, w, scale: _einsum("nd,df->nf", a, w, scale), rows, one)
        y = _einsum("nf,fd->nd", y, one.down, one.scale(2))
        # Rows past the expert's last pair are overwritten by the next tile, or are padding.
        return i + 1, lax.dynamic_update_slice(out, y, (start, np.int32(0)))

    _, out = lax.while_loop(lambda carry: carry[0] < last[-1], turn, (np.int32(0), out))
    return _weighted(out, order, weights, own).astype(x.dtype)


def _sorted(chosen, count: int):
    """Pairs in the order of their experts, those elsewhere last: (M,) int32; and which are here."""
    own = (chosen >= 0) & (chosen < count)
    key = jnp.where(own, chosen, np.int32(count)).ravel()
    return jnp.argsort(key, stable=True).astype(jnp.int32), own


def _gated(times, x, experts: ExpertMatrices):
    """silu(x gate) * (x up); `times` is (x, weight, scale) -> product."""
    gate = times(x, experts.gate, experts.scale(0))
    return jax.nn.silu(gate) * times(x, experts.up, experts.scale(1))


def _einsum(how: str, x, weight, scale):
    """A product in the dtype of x; scales of int8 weights are (F,) or (X, F)."""
    weight = as_bfloat16(weight).astype(x.dtype)
    y = jnp.einsum(how, x, weight, precision=precision_for(x.dtype))
    if scale is None:
        return y
    return y * (scale[:, None, :] if scale.ndim == 2 else scale[None, :]).astype(y.dtype)


def _weighted(y, order, weights, own):
    """The sum over k of sorted pairs (M, D) times their weights (N, k), in float32.

    Pairs that are not here add nothing. Gathered all at once, (N, k, D) would go through memory.
    """
    back = jnp.argsort(order).astype(jnp.int32).reshape(own.shape)
    total = np.float32(0.0)
    for i in range(own.shape[1]):
        one = jnp.where(own[:, i, None], y[back[:, i]].astype(jnp.float32), 0.0)
        total = one * weights[:, i, None] + total
    return total


def _sum_in_order(y):
    """(N, k, D) -> (N, D), the k summands one after the other."""
    total = y[:, 0]
    for i in range(1, y.shape[1]):
        total = total + y[:, i]
    return total
