"""How the parameters are handed to compiled programs; on TPUs and meshes, as they are.

On one CPU device, for float32 compute: matrices packed for the kernels of `leapjax.native`, up to
`PACKED_UP_TO_BYTES` of them. Where these can't be had, as views of the same memory:

- the vocabulary head comes in pieces too, whose logits fit in the processor's caches
  (`leapjax.decoding.streamed`);
- models of few layers come as a view of each layer too, which compiled programs read in
  place; what a loop slices off a stack XLA copies first, every time;
- large bfloat16 weights come as plain 16-bit words. XLA's CPU backend has no bfloat16
  arithmetic: it widens what a loop slices, and moves the widened copy of all layers out of
  the loop. For an 8B model that is 32 GB beside its 16. Words are no numbers to it, so each
  layer is widened when its turn comes. Smaller bfloat16 weights are widened here, once, for
  float32 compute; XLA would do it again at the beginning of every chunk of passes.

On one GPU a loaded model is taken apart into arrays of each layer's own, some of them fused: of a
stack XLA copies each layer's slice before it multiplies, three times the bytes. Measured with
LLaDA-8B's shape on an H100 (docs/performance.md): a window pass takes 2.3 times less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax import native
from leapjax.models.config import ModelConfig

# From here on the widened copy costs more than it saves; smaller models keep it.
WORDS_FROM_BYTES = 2**30
UNROLLED = 16  # layers at most that are compiled one by one on a CPU
UNSTACKED = 64  # and on a GPU, where 32 took 16 s longer to compile; and with packed matrices
PACKED_UP_TO_BYTES = 2**31  # of matrices, which are then held twice
_DERIVED = ("layer_views", "head_pieces", "head_packed")  # other forms of the same numbers
PIECE = 4096  # rows of the head; 32 positions' logits are half a megabyte


def arrange(params, config: ModelConfig, dtype="float32"):
    """The parameters as compiled programs should take them.

    Args:
      params: the model's pytree, on its device.
      config: static shape.
      dtype: compute dtype.

    Returns:
      The same pytree; on one CPU device with `layer_views` and `head_packed`, whose matrices are
      `native.Packed`, or else with `head_pieces`, a tuple of (C, D) views of the head (or of the
      tied embedding), up to `UNROLLED` layers with `layer_views`, a view of
      every leaf of `layers` for each of them, and, from `WORDS_FROM_BYTES` of bfloat16 weights on,
      with uint16 words for bfloat16 leaves
      instead of those; smaller ones in `dtype` if that is float32.
    """
    leaves = jax.tree.leaves(params)
    if not all(isinstance(x, jax.Array) for x in leaves):
        return params
    devices = {d for x in leaves for d in x.devices()}
    if [d.platform for d in devices] != ["cpu"]:
        return params
    (device,) = devices
    narrow = sum(x.size * 2 for x in leaves if x.dtype == jnp.bfloat16)
    depth, views = len(params["layers"]["q"]), {}
    if narrow >= WORDS_FROM_BYTES:
        params = jax.tree.map(lambda leaf: _words(leaf, device), params)
    elif jnp.dtype(dtype) == jnp.float32:
        params = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.bfloat16 else x, params)
    if _packs(params, jnp.dtype(dtype)):
        return {**params, **_packed(params, config, device)}
    if narrow < WORDS_FROM_BYTES and depth <= UNROLLED:
        host = jax.tree.map(np.asarray, params["layers"])
        each = (jax.tree.map(lambda x, i=i: _alias(x[i], device), host) for i in range(depth))
        views = {"layer_views": tuple(each)}
    table = np.asarray(params.get("head", params["embed"]))
    pieces = (_alias(table[i : i + PIECE], device) for i in range(0, len(table), PIECE))
    return {**params, **views, "head_pieces": tuple(pieces)}


# Matrices with the same input, which one product can take at once: their order side by side.
FUSED = {"vkq": ("v", "k", "q"), "gate_up": ("gate", "up")}


def widths(config: ModelConfig, names) -> list[int]:
    """Output widths of some matrices of a layer."""
    known = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
    return [
        known[name] * config.head_dim if name in known else config.mlp_hidden_size for name in names
    ]


def slices(params, config: ModelConfig) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Every parameter under its name in `param_shapes`, however the layers are arranged.

    Args:
      params: the model's pytree, as loaded or as `unstack` leaves it; numpy or JAX arrays.
      config: static shape.

    Yields:
      (leaf name, layer or None, values); a stacked leaf's layers one by one, in order.
    """
    for name, leaf in params.items():
        if name not in ("layers", *_DERIVED):
            yield name, None, np.asarray(leaf)
    for name, stack in params.get("layers", {}).items():
        on_cpu = isinstance(stack, jax.Array) and {d.platform for d in stack.devices()} == {"cpu"}
        stack = np.asarray(stack) if on_cpu else stack  # no copy there
        for layer in range(len(stack)):
            yield f"layers.{name}", layer, np.asarray(stack[layer])
    if "layers" in params:
        return
    for layer, view in enumerate(params["layer_views"]):
        for name, leaf in view.items():
            fused = next((f for f in FUSED if name in (f, f"{f}_bias", f"{f}_scale")), None)
            if fused is None:
                yield f"layers.{name}", layer, np.asarray(leaf)
                continue
            parts, kind = FUSED[fused], name.removeprefix(fused)
            cuts = np.cumsum(widths(config, parts))[:-1]
            for part, values in zip(parts, np.split(np.asarray(leaf), cuts, axis=-1), strict=True):
                yield f"layers.{part}{kind}", layer, values


def owned(params):
    """Parameters that nobody else holds, as one GPU should have them; elsewhere as they are.

    Args:
      params: the model's pytree; on a GPU its `layers` can't be used any more (`unstack`), unless
        there is no room to take them apart.
    """
    devices = {d for x in jax.tree.leaves(params["layers"]) for d in x.devices()}
    if [d.platform for d in devices] != ["gpu"] or len(params["layers"]["q"]) > UNSTACKED:
        return params
    stats = devices.pop().memory_stats()  # None where the allocator can't tell
    if stats and stats["bytes_limit"] - stats["bytes_in_use"] < largest_group(params):
        return params
    return unstack(params)


def _groups(layers) -> dict[str, tuple[str, ...]]:
    """Names of a layer's arrays when taken apart -> the leaves that each is made of."""
    groups = {name: (name,) for name in layers}
    for fused, names in FUSED.items():
        for suffix in ("", "_bias", "_scale"):
            if parts := tuple(n + suffix for n in names if n + suffix in layers):
                groups = {k: v for k, v in groups.items() if k not in parts}
                groups[fused + suffix] = parts
    return groups


def largest_group(params) -> int:
    """Bytes that `unstack` needs beside the parameters at most."""
    layers = params["layers"]
    return max(sum(layers[p].nbytes for p in parts) for parts in _groups(layers).values())


def unstack(params):
    """The parameters with `layer_views`, arrays of each layer's own, instead of `layers`.

    Compiled programs go through them one by one. Values, keys and queries are one matrix side by
    side, gate and up another, with their biases and scales likewise. The stacks are deleted one
    after the other, so that the largest group of them, at most, is held twice.

    Args:
      params: the model's pytree on one device; its `layers` can't be used any more. Returned
        as they are where this has been done.
    """
    if "layers" not in params:
        return params
    layers = params["layers"]
    views: list[dict] = [{} for _ in range(len(layers["q"]))]
    for name, parts in _groups(layers).items():
        for view, part in zip(views, _split([layers[p] for p in parts]), strict=True):
            view[name] = part
        jax.block_until_ready(views)
        for p in parts:
            layers[p].delete()
    rest = {k: v for k, v in params.items() if k not in ("layers", "layer_views")}
    return {**rest, "layer_views": tuple(views)}


@jax.jit
def _split(stacks):
    """Layers of some stacks, side by side."""
    depth = len(stacks[0])
    return tuple(jnp.concatenate([s[i] for s in stacks], axis=-1) for i in range(depth))


def _packs(params, dtype) -> bool:
    """Whether the matrices are to be packed for the kernels of `leapjax.native`."""
    matrices = [x for x in jax.tree.leaves(params) if x.ndim > 1]
    return (
        dtype == jnp.float32
        and all(x.dtype == jnp.float32 for x in matrices)
        and len(params["layers"]["q"]) <= UNSTACKED
        and sum(x.nbytes for x in matrices) <= PACKED_UP_TO_BYTES
        and native.available()
    )


def _packed(params, config: ModelConfig, device) -> dict:
    """`layer_views` and `head_packed`: packed matrices; biases and norms as they are."""
    host = jax.tree.map(np.asarray, params["layers"])
    groups, size, head = _groups(host), native.panel(), config.head_dim
    # The rotary embedding is the product's own where halves of heads are halves of panels.
    heads = (0, 0, 0) if head % size else (0, head, head)
    # In one product with others each has to end where a panel does.
    if any(n % size for n in widths(config, FUSED["vkq"])):
        groups = {k: v for k, v in groups.items() if not k.startswith("vkq")}
        groups |= {n: (n,) for n in host if n.partition("_")[0] in FUSED["vkq"]}
    views, pages = [], native.Pages()
    for i in range(len(host["q"])):
        view = {}
        for name, parts in groups.items():
            leaves = [host[p][i] for p in parts]
            if leaves[0].ndim == 1:
                view[name] = _alias(np.concatenate(leaves), device)
            elif name == "vkq":
                view[name] = native.pack(*leaves, device=device, pages=pages, heads=heads)
            else:
                gated = name == "gate_up"
                view[name] = native.pack(*leaves, device=device, pages=pages, gated=gated)
        views.append(view)
    table = np.asarray(params.get("head", params["embed"]))
    head_packed = native.pack(table.T, device=device, pages=pages)
    return {"layer_views": tuple(views), "head_packed": head_packed}


def _alias(array: np.ndarray, device):
    """A JAX array over the same memory, where it is aligned."""
    return jax.device_put(array, device, may_alias=True)


def _words(leaf, device):
    if leaf.dtype != jnp.bfloat16:
        return leaf
    return _alias(np.asarray(leaf).view(np.uint16), device)


def unpack(leaf) -> Any:
    """The bfloat16 array that 16-bit words stand for; anything else as it is."""
    if isinstance(leaf, native.Packed):
        return leaf
    return lax.bitcast_convert_type(leaf, jnp.bfloat16) if leaf.dtype == jnp.uint16 else leaf
