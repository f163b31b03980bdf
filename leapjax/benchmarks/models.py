"""Models to time: the embedded one, and random ones of a stated shape."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from leapjax.lm import LM, load
from leapjax.models.config import ModelConfig, param_shapes
from leapjax.models.transformer import init_params

MODEL_60M = ModelConfig(
    family="llada",
    vocab_size=32_000,
    d_model=512,
    n_layers=8,
    n_heads=8,
    n_kv_heads=8,
    head_dim=64,
    mlp_hidden_size=1408,
    rope_theta=500_000.0,
    norm_eps=1e-5,
    max_length=4096,
    mask_token_id=31_999,
    eos_token_id=31_998,
    pad_token_id=31_998,
)


def size(config: ModelConfig) -> int:
    """Number of parameters."""
    shapes = jax.tree.leaves(param_shapes(config), is_leaf=lambda x: isinstance(x, tuple))
    return sum(math.prod(s) for s in shapes)


def random_lm(config: ModelConfig, dtype: str = "float32", seed: int = 0) -> LM:
    """A model of this shape with random weights, stored in the compute dtype.

    Args:
      config: the shape.
      dtype: storage and compute dtype.
      seed: of the weights.
    """
    params = jax.jit(init_params, static_argnums=(0, 2))(
        config, jax.random.key(seed), jnp.dtype(dtype)
    )
    return LM(params, config, None, dtype)


def by_name(name: str) -> LM:
    """`embedded`, `60m`, or a checkpoint's path."""
    if name == "embedded":
        return load()
    if name == "60m":
        return random_lm(MODEL_60M)
    return load(name)
