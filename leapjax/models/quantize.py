"""Weight-only int8, with one scale per output channel.

    W (in, out) ~ int8 (in, out) * scale (out,);  x @ W ~ (x @ int8) * scale

Round to nearest, scale = largest magnitude / 127. Activations, norms, biases, routers, the
embedding and a tied head are not quantised. int8 takes a quarter of float32's bytes and half of
bfloat16's.
"""

import functools

import jax
import jax.numpy as jnp

from leapjax.config import QUANTIZATIONS
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.models.families import table


@functools.partial(jax.jit, static_argnames="axis")
def _int8(matrices, axis: int):
    """Quantise (N, …) matrices one at a time, so that only one is held in float32."""

    def one(matrix):
        wide = matrix.astype(jnp.float32)
        scale = jnp.max(jnp.abs(wide), axis=axis, keepdims=True) / 127.0
        whole = jnp.round(wide / jnp.where(scale == 0, 1.0, scale))
        return whole.astype(jnp.int8), jnp.squeeze(scale, axis)

    return jax.lax.map(one, matrices)


def quantize(params, config: ModelConfig, method: str):
    """Quantise the matrices of canonical float weights to int8, by one of `QUANTIZATIONS`.

    The result has int8 `q`, `k`, …, `head` and additional float32 leaves `q_scale` (L, out), …,
    `head_scale` (V,); leaves that are not quantised are the same arrays.
    """
    if method not in QUANTIZATIONS:
        raise UserError(f"quantize is {method!r}; choose one of {', '.join(QUANTIZATIONS)}")
    if not config.has_attention:
        raise UserError(
            f"quantize is {method}, but a {config.family} has no matrices to round; leave it out"
        )
    out = dict(params)
    for weight in table(config):
        if weight.quantized:
            run, _, name = weight.name.partition(".")
            stack = params[run][name]  # (L, in, out); of experts (L, X, in, out)
            whole, scale = _int8(stack.reshape(-1, *stack.shape[-2:]), axis=0)
            scale = scale.reshape(*stack.shape[:-2], -1)
            out[run] = out[run] | {name: whole.reshape(stack.shape), f"{name}_scale": scale}
    if "head" in params:
        # The head is (V, D), so its output channels are rows.
        rounded, scale = _int8(params["head"][None], axis=1)
        out["head"], out["head_scale"] = rounded[0], scale[0]
    return out
