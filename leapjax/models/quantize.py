"""Weight-only int8: each output channel of a matrix has a scale of its own.

    W (in, out) ~ int8 (in, out) * scale (out,);  x @ W ~ (x @ int8) * scale

Round to nearest, scale = largest magnitude / 127. Activations, norms, biases and the
embedding stay as they are; so does a head that is the embedding. A quarter of float32's
bytes, half of bfloat16's.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from leapjax.config import QUANTIZATIONS
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.models.families import table
from leapjax.models.weights import MATRIX


@functools.partial(jax.jit, static_argnames="axis")
def _int8(matrices, axis: int):
    """(N, …) matrices one at a time, so that only one is ever wide."""

    def one(matrix):
        wide = matrix.astype(jnp.float32)
        scale = jnp.max(jnp.abs(wide), axis=axis, keepdims=True) / 127.0
        whole = jnp.round(wide / jnp.where(scale == 0, 1.0, scale))
        return whole.astype(jnp.int8), jnp.squeeze(scale, axis)

    return jax.lax.map(one, matrices)


def quantize(params, config: ModelConfig, method: str):
    """The parameters with int8 matrices.

    Args:
      params: canonical, float leaves.
      config: static shape.
      method: one of `QUANTIZATIONS`.

    Returns:
      A pytree with int8 `q`, `k`, …, `head` and float32 `q_scale` (L, out), …,
      `head_scale` (V,) beside them; a leaf that was not quantised is the same array.

    Raises:
      UserError: no such method.
    """
    if method not in QUANTIZATIONS:
        raise UserError(f"quantize is {method!r}; choose one of {', '.join(QUANTIZATIONS)}")
    out = dict(params)
    for weight in table(config):
        if weight.role == MATRIX:
            run, _, name = weight.name.partition(".")
            whole, scale = _int8(params[run][name], axis=0)
            out[run] = out[run] | {name: whole, f"{name}_scale": scale}
    if "head" in params:
        # The head is (V, D): its output channels are rows.
        rounded, scale = _int8(params["head"][None], axis=1)
        out["head"], out["head_scale"] = rounded[0], scale[0]
    return out
