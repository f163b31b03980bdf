"""Models to time: the embedded one, and random ones of a stated shape."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from leapjax.config import pairs
from leapjax.lm import LM
from leapjax.loader import load
from leapjax.models import ModelConfig, param_shapes, parameter_count, table
from leapjax.models.attention import Bidirectional, BlockCausal
from leapjax.models.transformer import init_scale
from leapjax.ops.split import split_layers
from leapjax.planning.models import PRESETS
from leapjax.serve.lane import Replica
from leapjax.sharding import MeshShape, Placement, placements

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


def title(name: str, config: ModelConfig) -> str:
    """A model's name and size, for a heading."""
    return f"{name} ({parameter_count(config)} parameters)"


def with_vocabulary(config: ModelConfig, size: int) -> ModelConfig:
    """The same shape with a vocabulary of another size, whose last ids are special."""
    return dataclasses.replace(
        config,
        vocab_size=size,
        mask_token_id=size - 1,
        eos_token_id=size - 2,
        pad_token_id=size - 2,
    )


# LLaDA-8B's proportions, to try the code.
TINY_8B = dataclasses.replace(
    with_vocabulary(PRESETS["llada-8b"], 1000),
    d_model=64,
    n_layers=3,
    n_heads=2,
    n_kv_heads=2,
    head_dim=32,
    mlp_hidden_size=192,
)


def size(config: ModelConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(weight.shape) for weight in table(config))


def _normal(key, shape: tuple[int, ...], scale: float, dtype):
    """Normal numbers in a dtype; of a stack one layer at a time, so that little is held besides."""
    if len(shape) < 3:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(scale, dtype)
    return jax.lax.map(
        lambda k: _normal(k, shape[1:], scale, dtype), jax.random.split(key, shape[0])
    )


def random_lm(
    config: ModelConfig,
    dtype: str = "float32",
    seed: int = 0,
    mesh: MeshShape | None = None,
    split: bool = False,
) -> LM:
    """A model of this shape with random weights, stored in the compute dtype.

    They are drawn leaf by leaf on the devices: beside the weights no copy of them is held.

    `mesh`: devices to spread it over; None is the default device; `split`: by layer where a loaded
    model is (`leapjax.ops.split`).
    """
    replicas = []
    for place in [None] if mesh is None else placements(mesh):
        params = _random_params(config, dtype, seed, place)
        replicas.append(Replica(split_layers(params, config) if split else params, place))
    return LM(None, config, None, dtype, replicas=replicas)


def _random_params(config: ModelConfig, dtype: str, seed: int, place: Placement | None):
    """The weights of one replica."""
    # The device's own generator: quick for billions, its numbers are another's elsewhere.
    key, out = jax.random.key(seed, impl="rbg"), []
    shapes = param_shapes(config)
    leaves, tree = jax.tree_util.tree_flatten_with_path(
        shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    where = [None] * len(leaves)
    if place is not None:
        where = jax.tree.leaves(place.parameters(config, shapes))
    for i, ((path, shape), sharding) in enumerate(zip(leaves, where, strict=True)):
        name = path[-1].key
        if name.endswith("norm"):
            leaf = jnp.ones(shape, dtype, device=sharding)
        else:
            draw = jax.jit(_normal, static_argnums=(1, 2, 3), out_shardings=sharding)
            scale = init_scale(name, config)
            leaf = draw(jax.random.fold_in(key, i), shape, scale, jnp.dtype(dtype))
        out.append(jax.block_until_ready(leaf))
    return jax.tree_util.tree_unflatten(tree, out)


def for_cache(lm: LM, cache: str, block_length: int) -> LM:
    """The model itself, or a twin with the attention that the cache needs.

    Shape and weights are the same, so products cost the same. Its answers mean nothing.

    `lm`: a bidirectional or a block-causal model; `block_length`: the twin's block, tokens.
    """
    config = lm.config
    if not pairs.refusal(cache, "low_confidence", [run.attention for run in config.runs]):
        return lm
    rule = Bidirectional() if config.block_causal else BlockCausal(block_length)
    twin = dataclasses.replace(config, attention=rule)
    return LM(None, twin, None, lm.dtype, replicas=lm.replicas)


def by_name(name: str, quick: bool = False) -> LM:
    """`embedded`, `60m`, `llada-8b` (random, of its shape, bfloat16), or a checkpoint's path.

    `name`: which; `quick`: a tiny shape instead of LLaDA-8B's.
    """
    if name == "llada-8b":
        return random_lm(TINY_8B if quick else PRESETS[name], "bfloat16")
    if name == "embedded":
        return load()
    if name == "60m":
        return random_lm(MODEL_60M)
    return load(name)
