"""Arrange canonical parameters for one backend, by the devices that hold them.

    as_arranged   stacked layers, scanned: TPUs, meshes, and inside jitted programs
    arrange       the best form for the devices that hold the parameters
    for_training  the form for differentiated passes

`leapjax.ops.split` arranges for one GPU and restores canonical parameters.

On one CPU device with float32 compute, matrices are packed for the kernels of `leapjax.native`, up
to `PACKED_UP_TO_BYTES`. Otherwise the arrangement consists of views of the same memory:

- The vocabulary head is also split into pieces, whose logits fit in the processor's caches.
- Models with few layers get one view per layer, which compiled programs read in place. XLA copies
  every slice that a loop takes from a stack.
- Large bfloat16 weights are viewed as uint16. XLA's CPU backend has no bfloat16 arithmetic. It
  widens to float32, and loop-invariant code motion widens all layers ahead of the loop: 32 GB on
  top of the 16 GB of an 8B model. uint16 prevents that; each layer is widened when the loop
  reaches it.
- Smaller bfloat16 weights are widened here, once. XLA would repeat it in every chunk of passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax import native
from leapjax.models.config import ModelConfig, Run
from leapjax.ops import cpu, xla
from leapjax.ops.runs import Stacked, Unrolled
from leapjax.ops.weights import (
    GROUPS,
    Arranged,
    ExpertMatrices,
    Head,
    Matrices,
    Norm,
    Router,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float32

BACKENDS = {"xla": xla, "cpu": cpu}

# bfloat16 weights of at least this size stay bfloat16, viewed as uint16; smaller ones are widened.
WORDS_FROM_BYTES = 2**30
UNROLLED = 16  # most layers that are unrolled on a CPU
UNSTACKED = 64  # the same on a GPU (32 layers: 16 s more to compile) and with packed matrices
PACKED_UP_TO_BYTES = 2**31  # size of the matrices; packing holds them twice
PIECE = 4096  # rows of the head; the logits of 32 positions take half a megabyte

NORMS = ("attn_norm", "mlp_norm", "q_norm", "k_norm")


def as_arranged(params: Mapping[str, Any] | Arranged, config: ModelConfig) -> Arranged:
    """Arrange the parameters for XLA without moving data: stacks are scanned. Traceable."""
    if isinstance(params, Arranged):
        return params
    runs = tuple(_stacked(params[run.name], run, config) for run in config.runs)
    return arranged(params, runs, head_of(params, config))


def for_training(params: Mapping[str, Any], config: ModelConfig, balance: float = 0.0) -> Arranged:
    """Arrange the parameters for a differentiated pass: unrolled layers, 2-D matmuls. Traceable.

    Measured on 2 cores at batch 64 x 104 tokens, width 160, 6 layers: 1.66 s a step with scanned
    layers and 3-D matmuls, 0.77 s with this. `balance` is that of `Router`.
    """
    runs = []
    for run in config.runs:
        each = [jax.tree.map(lambda x, i=i: x[i], params[run.name]) for i in range(run.n_layers)]
        runs.append(Unrolled(tuple(_layer(x, run, config, True, balance) for x in each)))
    return arranged(params, tuple(runs), head_of(params, config))


def arranged(
    params: Mapping[str, Any],
    runs: tuple[Stacked | Unrolled, ...],
    head: Head,
    backend: str = "xla",
) -> Arranged:
    """Assemble `Arranged` from runs, head and the remaining canonical leaves."""
    return Arranged(params["embed"], runs, head, params.get("log_frequency"), backend)


def head_of(params: Mapping[str, Any], config: ModelConfig, **changes: Any) -> Head:
    """The head from canonical parameters; `changes` replaces fields."""
    made = Head(
        norm=norm_of(params, "final_norm", config),
        table=params.get("head"),
        bias=params.get("head_bias"),
        scales=params.get("head_scale"),
        factor=config.logit_scale,
    )
    return made.replace(**changes)


def norm_of(params: Mapping[str, Any], name: str, config: ModelConfig) -> Norm:
    """A norm from its canonical leaves."""
    return Norm(params[name], params.get(f"{name}_bias"), eps=config.norm_eps)


def _layer(
    leaves: Mapping[str, Any],
    run: Run,
    config: ModelConfig,
    training: bool = False,
    balance: float = 0.0,
) -> dict[str, Any]:
    """Weights of one layer, or of stacked layers, for XLA: one array per matrix."""

    def matrices(names):
        kinds = [[leaves.get(n + s) for n in names] for s in ("", "_bias", "_scale")]
        weights, biases, scales = (tuple(x for x in kind if x is not None) for kind in kinds)
        widths = tuple(x.shape[-1] for x in weights)
        return Matrices(weights, biases, scales, widths, training)

    made: dict[str, Any] = {name: matrices(names) for name, names in groups_of(run).items()}
    made["vkq"] = made["vkq"].replace(clip=config.clip_qkv)
    made |= experts_of(leaves, run, training, balance)
    return made | {name: norm_of(leaves, name, config) for name in NORMS if name in leaves}


def groups_of(run: Run) -> dict[str, tuple[str, ...]]:
    """A layer's matrices as the operations name them -> the leaves that each consists of.

    An expert layer's MLP is that of its shared experts, if it has any.
    """
    groups = {"vkq": GROUPS["vkq"], "o": ("o",)}
    if run.experts is None:
        return groups | {"gate_up": GROUPS["gate_up"], "down": ("down",)}
    if run.experts.shared_size:
        groups |= {"gate_up": ("shared_gate", "shared_up"), "down": ("shared_down",)}
    return groups


def experts_of(
    leaves: Mapping[str, Any], run: Run, training: bool = False, balance: float = 0.0
) -> dict[str, Any]:
    """The router and experts of a layer, or of stacked layers; {} for an MLP."""
    if run.experts is None:
        return {}
    names = [f"experts_{part}" for part in ("gate", "up", "down")]
    gate, up, down = (leaves[n] for n in names)
    scales = tuple(leaves[f"{n}_scale"] for n in names if f"{n}_scale" in leaves)
    return {
        "router": Router(leaves["router"], leaves.get("router_bias"), run.experts, balance),
        "experts": ExpertMatrices(gate, up, down, scales, training=training),
    }


def _stacked(leaves: Mapping[str, Any], run: Run, config: ModelConfig) -> Stacked:
    """A run's stacked layers; experts stay outside of what is scanned."""
    made = _layer(leaves, run, config)
    whole = {name: made.pop(name) for name in ("experts",) if name in made}
    return Stacked(made, run.n_layers, whole)


def arrange(
    params: Mapping[str, Any] | Arranged, config: ModelConfig, dtype: str = "float32"
) -> Mapping[str, Any] | Arranged:
    """Arrange the parameters for compiled programs of `dtype`; the canonical ones stay valid.

    They are packed or views on one CPU device, unmoved elsewhere; a chain's are returned as they
    are.
    """
    leaves = jax.tree.leaves(params)
    if isinstance(params, Arranged) or not config.has_attention:
        return params
    if not all(isinstance(x, jax.Array) for x in leaves):
        return as_arranged(params, config)
    devices = {d for x in leaves for d in x.devices()}
    if [d.platform for d in devices] != ["cpu"]:
        return as_arranged(params, config)
    (device,) = devices
    own: Any = params
    narrow = sum(x.size * 2 for x in leaves if x.dtype == jnp.bfloat16)
    if narrow >= WORDS_FROM_BYTES:
        own = jax.tree.map(lambda leaf: _as_uint16(leaf, device), own)
    elif jnp.dtype(dtype) == jnp.float32:
        own = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.bfloat16 else x, own)
    if _should_pack(own, config, jnp.dtype(dtype)):
        return _packed(own, config, device)
    made = as_arranged(own, config)
    if narrow < WORDS_FROM_BYTES and config.n_layers <= UNROLLED:
        runs = tuple(
            Unrolled(tuple(_layer(x, run, config) for x in _views(own[run.name], device)))
            for run in config.runs
        )
        made = made.replace(runs=runs)
    table = np.asarray(own.get("head", own["embed"]))
    pieces = (_alias(table[i : i + PIECE], device) for i in range(0, len(table), PIECE))
    return made.replace(head=made.head.replace(pieces=tuple(pieces)))


def streams_head(model: Arranged) -> bool:
    """Whether `head_summary` serves these weights."""
    return model.backend == "cpu" or bool(model.head.pieces)


def with_log_frequency(
    params: Mapping[str, Any] | Arranged, known: Float32[Array, " V"]
) -> Mapping[str, Any] | Arranged:
    """Add the log of each token's share of a corpus to the parameters, canonical or arranged."""
    if isinstance(params, Arranged):
        return params.replace(log_frequency=known)
    return {**params, "log_frequency": known}


def log_frequency(params: Mapping[str, Any] | Arranged) -> Float32[Array, " V"] | None:
    """The token frequencies that `with_log_frequency` added, or None."""
    return params.log_frequency if isinstance(params, Arranged) else params.get("log_frequency")


def _views(stacks, device) -> list[dict[str, jax.Array]]:
    """Each layer's leaves as views of the stacks' memory."""
    host = jax.tree.map(np.asarray, stacks)
    depth = len(host["q"])
    return [jax.tree.map(lambda x, i=i: _alias(x[i], device), host) for i in range(depth)]


def _should_pack(params, config: ModelConfig, dtype) -> bool:
    """Whether to pack the matrices for the kernels of `leapjax.native`."""
    matrices = [x for x in jax.tree.leaves(params) if x.ndim > 1]
    return (
        dtype == jnp.float32
        and all(x.dtype == jnp.float32 for x in matrices)
        and config.n_layers <= UNSTACKED
        and sum(x.nbytes for x in matrices) <= PACKED_UP_TO_BYTES
        and native.available()
    )


def _packed(params, config: ModelConfig, device) -> Arranged:
    """Arrange for the kernels: packed matrices, unchanged biases and norms."""
    pages, size = native.Pages(), native.panel()
    # The product can apply RoPE where half a head is half a panel.
    plain = not config.qk_norm and config.clip_qkv is None and config.rotated == config.head_dim
    rotates = plain and not config.head_dim % size
    heads = (0, config.head_dim, config.head_dim) if rotates else (0, 0, 0)

    def pack(*matrices, **how):
        host = [np.asarray(m) for m in matrices]
        return native.pack(*host, device=device, pages=pages, **how)

    def packed(w: Matrices, group: str):
        bias = jnp.concatenate(w.biases) if w.biases else None
        if group == "gate_up":
            made = (pack(*w.weights, gated=True),)
        elif group == "vkq" and not any(n % size for n in w.widths):
            made = (pack(*w.weights, heads=heads),)
        else:  # matrices can share a product only if each ends at a panel's edge
            made = tuple(pack(m) for m in w.weights)
        return cpu.PackedMatrices(made, bias, w.widths, w.clip)

    def of_layer(name: str, w):
        if isinstance(w, Matrices):
            return packed(w, name)
        if isinstance(w, ExpertMatrices):
            host = [np.asarray(m) for m in (w.gate, w.up, w.down)]
            return native.pack_experts(*host, device=device, pages=pages)
        return w.replace(weight=pack(w.weight)) if isinstance(w, Router) else w

    def layer(leaves, run):
        return {name: of_layer(name, w) for name, w in _layer(leaves, run, config).items()}

    runs = tuple(
        Unrolled(tuple(layer(x, run) for x in _views(params[run.name], device)))
        for run in config.runs
    )
    table = np.asarray(params.get("head", params["embed"])).T
    return arranged(params, runs, head_of(params, config, table=pack(table)), "cpu")


def _alias(array: np.ndarray, device):
    """A JAX array over the same memory, if that is aligned."""
    return jax.device_put(array, device, may_alias=True)


def _as_uint16(leaf, device):
    if leaf.dtype != jnp.bfloat16:
        return leaf
    return _alias(np.asarray(leaf).view(np.uint16), device)
