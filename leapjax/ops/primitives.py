"""Building blocks of every backend: RMS norm, RoPE, gathers.

Shapes: B rows, S positions computed now, T columns, W window, D width, E head width, R rotated
dimensions of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Float, Float32, Int32, Shaped


def precision_for(dtype: DTypeLike) -> lax.Precision:
    """Matmul precision of a compute dtype: float32 means float32, on every device.

    >>> precision_for(jnp.dtype("float32")).name, precision_for(jnp.dtype("bfloat16")).name
    ('HIGHEST', 'DEFAULT')
    """
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def as_bfloat16(leaf: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Bitcast uint16 to bfloat16; return any other dtype unchanged."""
    return lax.bitcast_convert_type(leaf, jnp.bfloat16) if leaf.dtype == jnp.uint16 else leaf


def along_last(
    vector: Shaped[Array, " D"], like: Shaped[Array, "*rows D"]
) -> Shaped[Array, "*ones D"]:
    """A (D,) vector in the dtype of `like`, reshaped to broadcast along its last axis.

    >>> along_last(jnp.ones(3), jnp.zeros((2, 5, 3), jnp.bfloat16)).shape
    (1, 1, 3)
    """
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def rms_norm(
    x: Float[Array, "*rows D"],
    weight: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
    eps: float,
) -> Float[Array, "*rows D"]:
    """Root-mean-square norm, computed in float32 and returned in the dtype of x.

    `eps` is added to the mean square.

    >>> rms_norm(jnp.array([[2.0, -2.0]]), jnp.array([1.0, 3.0]), None, eps=0.0).tolist()
    [[1.0, -3.0]]
    """
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    out = wide.astype(x.dtype) * along_last(weight, x)
    return out if bias is None else out + along_last(bias, x)


def rope_tables(
    positions: Int32[Array, "B S"], rotated: int, theta: float
) -> tuple[Float32[Array, "B S 1 ({rotated}+1)//2"], Float32[Array, "B S 1 ({rotated}+1)//2"]]:
    """Cosines and sines of the rotary embedding of each token's position in its own row.

    R is `rotated`, `theta` the base; the 1 broadcasts over heads. An odd R has (R + 1) / 2
    frequencies, spaced by 2 / R as the originals' are.

    >>> cos, sin = rope_tables(jnp.array([[0, 1]]), rotated=4, theta=100.0)
    >>> cos.shape, sin[0, 0, 0].tolist()
    ((1, 2, 1, 2), [0.0, 0.0])
    """
    inverse = 1.0 / theta ** (jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    angles = positions.astype(jnp.float32)[:, :, None, None] * inverse[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B S heads E"],
    cos: Float32[Array, "B S 1 half"],
    sin: Float32[Array, "B S 1 half"],
) -> Float[Array, "B S heads E"]:
    """Apply the rotary embedding to the first R dimensions of each head, in float32.

    Halves layout: dimension i < R / 2 turns with i + R / 2.

    >>> x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    >>> cos, sin = jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2))  # a quarter turn
    >>> rotate(x, cos, sin).ravel().tolist()
    [-3.0, -4.0, 1.0, 2.0]
    """
    half = cos.shape[-1]
    parts = [x] if 2 * half == x.shape[-1] else jnp.split(x, [2 * half], axis=-1)
    first, second = jnp.split(parts[0].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), *parts[1:]], axis=-1)


def take(
    values: Shaped[Array, "B T *rest"], columns: Int32[Array, "B W"]
) -> Shaped[Array, "B W *rest"]:
    """Gather columns of (B, T, ...) by (B, W) int32 -> (B, W, ...).

    >>> take(jnp.array([[10, 11, 12, 13]]), jnp.array([[3, 0]])).tolist()
    [[13, 10]]
    """
    index = columns.reshape(columns.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)
