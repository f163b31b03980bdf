"""From canonical parameters to weights as one backend reads them: the one place that asks where.

    as_arranged   the stacks as they are, scanned: TPUs, meshes, and inside of programs
    arrange       the best form for the devices that hold the parameters
    for_training  for passes that are differentiated

`leapjax.ops.split` has the form for one GPU, and the way back to canonical parameters.

On one CPU device, for float32 compute: matrices packed for the kernels of `leapjax.native`, up to
`PACKED_UP_TO_BYTES` of them. Where these can't be had, views of the same memory:

- the vocabulary head comes in pieces too, whose logits fit in the processor's caches;
- models of few layers come as a view of each layer, which compiled programs read in place; XLA
  copies what a loop slices off a stack, every time;
- large bfloat16 weights come as plain 16-bit words. XLA's CPU backend has no bfloat16
  arithmetic: it widens what a loop slices, and moves the widened copy of all layers out of
  the loop. For an 8B model that is 32 GB beside its 16. Words are no numbers to XLA, so each
  layer is widened when its turn comes. Smaller bfloat16 weights are widened here, once, for
  float32 compute; XLA would do it again at the beginning of every chunk of passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax import native
from leapjax.models.config import ModelConfig
from leapjax.ops import cpu, xla
from leapjax.ops.runs import Stacked, Unrolled
from leapjax.ops.weights import GROUPS, Arranged, Head, Matrices, Norm

BACKENDS = {"xla": xla, "cpu": cpu}

# From here on the widened copy costs more than it saves; smaller models keep it.
WORDS_FROM_BYTES = 2**30
UNROLLED = 16  # layers at most that are compiled one by one on a CPU
UNSTACKED = 64  # and on a GPU, where 32 took 16 s longer to compile; and with packed matrices
PACKED_UP_TO_BYTES = 2**31  # of matrices, which are then held twice
PIECE = 4096  # rows of the head; 32 positions' logits are half a megabyte

SINGLE = ("o", "down")
NORMS = ("attn_norm", "mlp_norm", "q_norm", "k_norm")


def as_arranged(params: Mapping[str, Any] | Arranged, config: ModelConfig) -> Arranged:
    """The parameters for XLA with nothing moved: stacks are scanned. Traceable.

    Args:
      params: canonical (`leapjax.models.param_shapes`), or arranged already.
      config: static shape.
    """
    if isinstance(params, Arranged):
        return params
    runs = tuple(Stacked(_layer(params[run.name], config), run.n_layers) for run in config.runs)
    return arranged(params, runs, head_of(params, config))


def for_training(params: Mapping[str, Any], config: ModelConfig) -> Arranged:
    """The parameters for a differentiated pass: layers one by one, products of two axes. Traceable.

    Measured on 2 cores at batch 64 x 104 tokens, width 160, 6 layers: 1.66 s a step with scanned
    layers and products of three axes, 0.77 s with this.

    Args:
      params: canonical.
      config: static shape.
    """
    runs = []
    for run in config.runs:
        each = [jax.tree.map(lambda x, i=i: x[i], params[run.name]) for i in range(run.n_layers)]
        runs.append(Unrolled(tuple(_layer(x, config, training=True) for x in each)))
    return arranged(params, tuple(runs), head_of(params, config))


def arranged(params, runs, head: Head, backend: str = "xla") -> Arranged:
    """Runs and head, with what else there is besides the layers."""
    return Arranged(params["embed"], runs, head, params.get("log_frequency"), backend)


def head_of(params, config: ModelConfig, **changes) -> Head:
    """The head from canonical parameters, some fields changed."""
    made = Head(
        norm=norm_of(params, "final_norm", config),
        table=params.get("head"),
        bias=params.get("head_bias"),
        scales=params.get("head_scale"),
        factor=config.logit_scale,
    )
    return made.replace(**changes)


def norm_of(params, name: str, config: ModelConfig) -> Norm:
    """A norm from its canonical leaves."""
    return Norm(params[name], params.get(f"{name}_bias"), eps=config.norm_eps)


def _layer(leaves: Mapping[str, Any], config: ModelConfig, training: bool = False) -> dict:
    """Weights of a layer, or of stacked ones, for XLA: every matrix an array of its own."""

    def matrices(names):
        kinds = [[leaves.get(n + s) for n in names] for s in ("", "_bias", "_scale")]
        weights, biases, scales = (tuple(x for x in kind if x is not None) for kind in kinds)
        widths = tuple(x.shape[-1] for x in weights)
        return Matrices(weights, biases, scales, widths, training)

    groups = GROUPS | {name: (name,) for name in SINGLE}
    made: dict[str, Any] = {name: matrices(names) for name, names in groups.items()}
    return made | {name: norm_of(leaves, name, config) for name in NORMS if name in leaves}


def arrange(
    params: Mapping[str, Any] | Arranged, config: ModelConfig, dtype: str = "float32"
) -> Arranged:
    """The parameters as compiled programs should take them, beside the canonical ones.

    Args:
      params: canonical, on their devices; or arranged already.
      config: static shape.
      dtype: compute dtype.

    Returns:
      The weights; on one CPU device packed or as views of the same memory, elsewhere as they are.
    """
    leaves = jax.tree.leaves(params)
    if isinstance(params, Arranged):
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
        own = jax.tree.map(lambda leaf: _words(leaf, device), own)
    elif jnp.dtype(dtype) == jnp.float32:
        own = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.bfloat16 else x, own)
    if _packs(own, config, jnp.dtype(dtype)):
        return _packed(own, config, device)
    made = as_arranged(own, config)
    if narrow < WORDS_FROM_BYTES and config.n_layers <= UNROLLED:
        runs = tuple(
            Unrolled(tuple(_layer(x, config) for x in _views(own[run.name], device)))
            for run in config.runs
        )
        made = made.replace(runs=runs)
    table = np.asarray(own.get("head", own["embed"]))
    pieces = (_alias(table[i : i + PIECE], device) for i in range(0, len(table), PIECE))
    return made.replace(head=made.head.replace(pieces=tuple(pieces)))


def streams_head(model: Arranged) -> bool:
    """Whether `head_summary` serves these weights."""
    return model.backend == "cpu" or bool(model.head.pieces)


def with_log_frequency(params: Mapping[str, Any] | Arranged, known):
    """The same parameters, canonical or arranged, with how frequent tokens are.

    Args:
      params: to add to.
      known: (V,) float32, log of each token's share of a corpus.
    """
    if isinstance(params, Arranged):
        return params.replace(log_frequency=known)
    return {**params, "log_frequency": known}


def _views(stacks, device) -> list[dict[str, jax.Array]]:
    """Each layer's leaves as views of the stacks' memory."""
    host = jax.tree.map(np.asarray, stacks)
    depth = len(host["q"])
    return [jax.tree.map(lambda x, i=i: _alias(x[i], device), host) for i in range(depth)]


def _packs(params, config: ModelConfig, dtype) -> bool:
    """Whether the matrices are to be packed for the kernels of `leapjax.native`."""
    matrices = [x for x in jax.tree.leaves(params) if x.ndim > 1]
    return (
        dtype == jnp.float32
        and all(x.dtype == jnp.float32 for x in matrices)
        and config.n_layers <= UNSTACKED
        and sum(x.nbytes for x in matrices) <= PACKED_UP_TO_BYTES
        and native.available()
    )


def _packed(params, config: ModelConfig, device) -> Arranged:
    """Weights for the kernels: packed matrices; biases and norms as they are."""
    pages, size = native.Pages(), native.panel()
    # RoPE is the product's own where halves of heads are halves of panels.
    rotates = not (config.head_dim % size or config.qk_norm)
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
        else:  # in one product with others each has to end where a panel does
            made = tuple(pack(m) for m in w.weights)
        return cpu.PackedMatrices(made, bias, w.widths)

    def layer(leaves):
        made = _layer(leaves, config)
        return {k: packed(w, k) if isinstance(w, Matrices) else w for k, w in made.items()}

    runs = tuple(
        Unrolled(tuple(layer(x) for x in _views(params[run.name], device))) for run in config.runs
    )
    table = np.asarray(params.get("head", params["embed"])).T
    return arranged(params, runs, head_of(params, config, table=pack(table)), "cpu")


def _alias(array: np.ndarray, device):
    """A JAX array over the same memory, where it is aligned."""
    return jax.device_put(array, device, may_alias=True)


def _words(leaf, device):
    if leaf.dtype != jnp.bfloat16:
        return leaf
    return _alias(np.asarray(leaf).view(np.uint16), device)
