"""Packed matrices, and the operations on them, as JAX sees them.

Shapes: K rows and N columns of a matrix, P panels of C columns, B rows, S queries, T keys,
L layers, H query heads, G key/value heads, E head width; X experts of inner width F, of which a
token has k.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.native.build import panel
from leapjax.native.pages import Pages

TOGETHER = 8  # panels whose summary is made at once; more leave less to share between threads
EXPERT_FLOATS = 2**24  # what experts have computed and not yet summed up, at most


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Float32 matrices (K, N) side by side, in panels of columns, or some of those matrices.

    If `gated`, two matrices of equal columns stand for one, silu of the first's product times the
    second's; half of each panel is the first's. `heads` are of each matrix the width of its heads
    if each panel holds columns of a head's first half and the same of its second, as the rotary
    embedding needs them; 0 if its columns are in order. `columns` say how many each matrix has: all
    but the last fill their panels. `first` is the panel of the first column.
    """

    panels: jax.Array  # (P, K, C) float32; a matrix's last one is filled up with zeros
    columns: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    first: int = dataclasses.field(default=0, metadata={"static": True})
    gated: bool = dataclasses.field(default=False, metadata={"static": True})
    heads: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def part(self, start: int, stop: int) -> Packed:
        """Matrices from number `start` up to `stop`, without copying."""
        before = sum(-(-n // self.panels.shape[-1]) for n in self.columns[:start])
        return dataclasses.replace(
            self,
            columns=self.columns[start:stop],
            first=self.first + before,
            heads=self.heads[start:stop],
        )


def pack(
    *matrices: np.ndarray,
    device=None,
    pages: Pages | None = None,
    gated: bool = False,
    heads: Sequence[int] = (),
) -> Packed:
    """Pack matrices (K, N) of any float dtype for this processor, which must be `available` for it.

    All but the last fill their panels. `pages` is memory to use, for several of these. `gated`: two
    matrices are a gate and what it is for (`Packed`). `heads` are widths of the matrices' heads if
    they are to be rotated, else 0; whole panels.
    """
    size = panel()
    heads = tuple(heads) or (0,) * len(matrices)
    if gated:
        gate, other = matrices
        ordered = [_alternating(gate, other, size // 2)]
        columns, heads = (gate.shape[1],), (0,)
    else:
        ordered = [_by_halves(m, h, size) if h else m for m, h in zip(matrices, heads, strict=True)]
        columns = tuple(m.shape[1] for m in matrices)
        if any(n % size for n in columns[:-1]) or any(h % size for h in heads):
            raise ValueError(f"matrices and heads must end where a panel of {size} columns does")
    depth = matrices[0].shape[0]
    counts = [-(-m.shape[1] // size) for m in ordered]
    panels = (pages or Pages()).empty((sum(counts), depth, size))
    start = 0
    for matrix, count in zip(ordered, counts, strict=True):
        _fill(panels[start : start + count], matrix)
        start += count
    return Packed(jax.device_put(panels, device, may_alias=True), columns, gated=gated, heads=heads)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedExperts:
    """Float32 matrices of a layer's experts, in panels of columns, as `Packed` has them."""

    gate_up: jax.Array  # (X, P, D, C) float32, gated: half of each panel is the gate's
    down: jax.Array  # (X, Q, F, C) float32


def pack_experts(gate, up, down, *, device=None, pages: Pages | None = None) -> PackedExperts:
    """Pack experts for this processor, which must be `available` for it.

    `gate` and `up` are (X, D, F), `down` (X, F, D), of any float dtype; `pages` is memory to use,
    for several of these.
    """
    size, pages = panel(), pages or Pages()
    count, depth, width = gate.shape
    first = pages.empty((count, -(-2 * width // size), depth, size))
    second = pages.empty((count, -(-depth // size), width, size))
    for i in range(count):
        _fill(first[i], _alternating(gate[i], up[i], size // 2))
        _fill(second[i], down[i])
    return PackedExperts(*(jax.device_put(x, device, may_alias=True) for x in (first, second)))


def _fill(panels: np.ndarray, matrix: np.ndarray) -> None:
    """Write a matrix (K, N) into its panels (P, K, C); the last is filled up with zeros."""
    (depth, n), (count, _, size) = matrix.shape, panels.shape
    whole = n // size
    panels[:whole] = matrix[:, : whole * size].reshape(depth, whole, size).transpose(1, 0, 2)
    if whole < count:
        panels[whole] = 0
        panels[whole, :, : n - whole * size] = matrix[:, whole * size :]


def _alternating(gate, other, half: int):
    """Columns of two matrices in turns, `half` of each; filled up with zeros."""
    depth, n = gate.shape
    fill = [(0, 0), (0, -n % half)]
    pair = [np.pad(m, fill).reshape(depth, -1, half) for m in (gate, other)]
    return np.stack(pair, axis=2).reshape(depth, -1)


def _by_halves(matrix, head: int, size: int):
    """Columns in panels of half a head's first half and half its second, of the same places."""
    depth = matrix.shape[0]
    parts = matrix.reshape(depth, -1, 2, head // size, size // 2)
    return parts.transpose(0, 1, 3, 2, 4).reshape(depth, -1)


def product(x, matrix: Packed, *, norm=None, eps: float = 0.0, bias=None, rope=None, add=None):
    """Products of x with the matrices in float32, and what comes before and after them.

    Sums run over K in order: a row's result doesn't depend on how many rows there are. `x` is (...,
    K) float32. `norm` is a root-mean-square norm of it that comes first: its weights (K,), or
    weights and biases (2, K), with `eps` added to the mean square. `bias` are the matrices' biases,
    one after the other (a gate's and the other's, if gated). Matrices with heads are rotated by
    `rope`, cosines and sines (..., 1, E / 2) each. `add` (..., N) is added to the only result.
    Returns a list of (..., N), one for each matrix; for a gated pair one.
    """
    none = jnp.zeros((0,), jnp.float32)
    rotated = next((i for i, head in enumerate(matrix.heads) if head), len(matrix.columns))
    width, cos, sin = 0, none, none
    if rotated < len(matrix.columns):
        width = matrix.heads[rotated]
        if rope is None or set(matrix.heads[rotated:]) != {width}:
            raise ValueError("rotated matrices come last, have equal heads and need RoPE")
        cos, sin = rope
    outs = [jax.ShapeDtypeStruct((*x.shape[:-1], n), jnp.float32) for n in matrix.columns]
    call = jax.ffi.ffi_call("leapjax_product", outs, vmap_method="sequential")
    given = [none if a is None else a.astype(jnp.float32) for a in (norm, bias, cos, sin, add)]
    return call(
        x,
        matrix.panels,
        *given,
        first=np.int64(matrix.first),
        eps=np.float32(eps),
        gated=np.bool_(matrix.gated),
        head=np.int64(width),
        rotated=np.int64(rotated),
    )


def route(
    logits,
    bias,
    count: int,
    *,
    score: str = "softmax",
    weighs: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
    groups: int = 1,
    top_groups: int = 1,
):
    """Choose experts by a router's logits, as `leapjax.ops.experts.route`.

    A row's choice and the bits of its weights depend on no other row. `logits` are (N, X) float32,
    `bias` (X,) is added to the scores: `weighs` says whether it is a part of the weights, or only
    takes part in the choice. `groups` are equal groups of consecutive experts, of which a row may
    choose from `top_groups`. Returns (N, k) int32, best first, ties to the lowest; and
    (N, k) float32, their weights.
    """
    shape = (len(logits), count)
    outs = [jax.ShapeDtypeStruct(shape, t) for t in (jnp.int32, jnp.float32)]
    call = jax.ffi.ffi_call("leapjax_route", outs, vmap_method="sequential")
    chosen, weights = call(
        logits,
        jnp.zeros((0,), jnp.float32) if bias is None else bias.astype(jnp.float32),
        sigmoid=np.bool_(score == "sigmoid"),
        weighs=np.bool_(weighs),
        normalized=np.bool_(normalize),
        scale=np.float32(scale),
        groups=np.int64(groups),
        top=np.int64(top_groups),
    )
    return chosen, weights


def experts(x, chosen, weights, matrices: PackedExperts, *, norm=None, eps: float = 0.0, add=None):
    """Weighted sums of the experts that tokens have chosen, in float32.

    Only those experts' matrices are read. A token's sum runs over its experts in its own order: its
    bits depend on no other token. `x` is (..., D) float32, `chosen` (..., k) int32 in [0, X),
    `weights` (..., k) float32; `norm` and `eps` are those of `product`; `add` (..., D) is added to
    the sums. Returns (..., D): the sum over k of weight * ((silu(x gate) * (x up)) down).
    """
    depth, some = x.shape[-1], chosen.shape[-1]
    rows, (_, panels, width, size) = x.size // depth, matrices.down.shape
    parts = -(-rows * some * (width + depth) // EXPERT_FLOATS) or 1
    together = -(-rows // parts) * some
    outs = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((rows, depth), (together, width), (together, panels * size))
    ]
    call = jax.ffi.ffi_call("leapjax_experts", outs, vmap_method="sequential")
    operands = [y.reshape(rows, y.shape[-1]) for y in (x, chosen, weights)]
    none = jnp.zeros((0,), jnp.float32)
    given = [none if a is None else a.astype(jnp.float32) for a in (norm, add)]
    out = call(*operands, matrices.gate_up, matrices.down, *given, eps=np.float32(eps))[0]
    return out.reshape(x.shape)


def summary(
    x,
    matrix: Packed,
    bias,
    scale: float,
    *,
    norm=None,
    eps: float = 0.0,
    apart: Sequence[int] = (),
):
    """What a softmax needs to know of scale * norm(x) @ matrix + bias, which is held nowhere.

    `x` is (..., K) float32, the matrix one (K, N), all of its columns; `norm` and `eps` are those
    of `product`. Of all columns but those `apart`, three arrays of shape x.shape[:-1]: the largest
    number (float32, minus infinity where there is none), the first column it stands in (int32), and
    the sum of exponentials of all less the largest (float32). And the numbers of the columns apart,
    (..., len(apart)) float32. Sums run in an order that no other row changes.
    """
    ids = np.asarray(apart, np.int32)
    own, bias = bias[ids], bias.at[ids].set(-jnp.inf)
    count, _, size = matrix.panels.shape
    (columns,) = matrix.columns
    bias = jnp.pad(bias, (0, count * size - columns), constant_values=-jnp.inf)
    shape = (-(-count // TOGETHER), *x.shape[:-1])
    outs = [jax.ShapeDtypeStruct(shape, t) for t in (jnp.float32, jnp.int32, jnp.float32)]
    outs.append(jax.ShapeDtypeStruct((*x.shape[:-1], len(ids)), jnp.float32))
    call = jax.ffi.ffi_call("leapjax_summary", outs, vmap_method="sequential")
    norm = jnp.zeros((0,), jnp.float32) if norm is None else norm.astype(jnp.float32)
    numbers = {"scale": np.float32(scale), "eps": np.float32(eps)}
    tops, places, sums, some = call(x, matrix.panels, norm, bias, ids, own, **numbers)
    top = jnp.max(tops, axis=0)
    # Of equals the lowest column; panels are in order.
    place = jnp.min(jnp.where(tops == top[None], places, jnp.int32(columns - 1)), axis=0)
    place = jnp.minimum(place, jnp.int32(columns - 1))  # of nothing but NaNs too
    base = jnp.where(jnp.isneginf(top), 0.0, top)
    return top, place, jnp.sum(sums * jnp.exp(tops - base[None]), axis=0), some


def attention(q, k, v, valid, cached=None):
    """Bidirectional attention in float32, as `leapjax.ops.attention.attention`.

    Keys and values are read where they are, all layers' cached ones in one array. Scores of keys
    that are not valid are not computed. `q` is (B, S, H, E), `k` (already rotated) and `v` are
    (B, N, G, E), `valid` (B, N) bool; `cached` has a static layer. Returns (B, S, H * E). A row
    without any valid key attends to all of them alike.
    """
    b, s, h, e = q.shape
    if cached is None:
        keys = values = jnp.zeros((1, b, k.shape[2], 0, e), jnp.float32)
        others, layer = jnp.zeros((b, 0), bool), 0
    else:
        keys, values, others, layer = cached
    out = jax.ShapeDtypeStruct((b, s, h * e), jnp.float32)
    call = jax.ffi.ffi_call("leapjax_attention", out, vmap_method="sequential")
    return call(q, keys, values, others, k, v, valid, layer=np.int64(layer))
