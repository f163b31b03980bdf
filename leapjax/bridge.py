"""Convert models to Flax NNX modules and back, for training and quantisation tools.

    lm ── to_nnx ─▶ nnx.Module ── fine-tune, LoRA, … ─▶ from_nnx ─▶ lm

The conversion is exact: the module's `Param`s hold the model's arrays, under the names of
`leapjax.models.param_shapes`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.models import param_shapes
from leapjax.models.config import ModelConfig
from leapjax.models.network import network
from leapjax.ops.arrangement import for_training


class Transformer(nnx.Module):
    """A masked diffusion transformer whose weights are `nnx.Param`s.

    Attributes:
      weights: pytree of Params with the names and shapes of `leapjax.models.param_shapes`.
      config: static shape.
      dtype: compute dtype's name.
    """

    def __init__(self, params: Any, config: ModelConfig, dtype: str = "float32"):
        self.weights = nnx.data(jax.tree.map(nnx.Param, params))
        self.config = config
        self.dtype = dtype

    def __call__(self, ids, positions=None, valid=None):
        """The model's raw logits, not shifted for Dream.

        Args:
          ids: (B, T) int32.
          positions: (B, T) int32 rotary positions; None counts from 0.
          valid: (B, T) bool, False marks pads; None is all True.

        Returns:
          (B, T, V) float32.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
        if valid is None:
            valid = jnp.ones(ids.shape, bool)
        params, dtype = _arrays(self.weights), jnp.dtype(self.dtype)
        if any(run.experts for run in self.config.runs):
            params = for_training(params, self.config)  # experts by operations with gradients
        own = network(self.config)
        hidden = own.hidden_states(params, self.config, ids, positions, valid, dtype)
        return own.head(params, self.config, hidden)


def to_nnx(lm: LM) -> Transformer:
    """Convert a model to an NNX module, which shares its arrays.

    Raises:
      UserError: the weights are quantised, so they can't be trained.
    """
    if lm.quantization is not None:
        raise UserError(f"to_nnx: weights are {lm.quantization}; load them without quantize")
    return Transformer(lm.params, lm.config, lm.dtype)


def from_nnx(module: Transformer, like: LM) -> LM:
    """Convert an NNX module to a model that is ready to decode.

    Args:
      module: from `to_nnx`, perhaps with changed weights.
      like: model that provides the shape, tokenizer and compute dtype.

    Returns:
      A new LM, which shares the module's arrays.

    Raises:
      UserError: a parameter is missing, unknown, or of another shape.
    """
    params = _arrays(module.weights)
    want = param_shapes(like.config)
    flat_want = _by_name(want, lambda x: isinstance(x, tuple))
    flat = _by_name(params, lambda x: hasattr(x, "shape"))
    for name in sorted(flat_want.keys() | flat.keys()):
        if name not in flat or name not in flat_want:
            what = "is missing" if name in flat_want else "is not one of the model's"
            raise UserError(f"from_nnx: parameter {name} {what}")
        if tuple(flat[name].shape) != flat_want[name]:
            raise UserError(
                f"from_nnx: parameter {name} has shape {tuple(flat[name].shape)}, expected "
                f"{flat_want[name]}"
            )
    return LM(dict(params), like.config, like.codec, dtype=like.dtype, path=like.path)


def _arrays(weights) -> Any:
    """The Params' arrays."""
    return jax.tree.map(lambda p: p[...], weights, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _by_name(tree, is_leaf) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return {".".join(str(getattr(k, "key", k)) for k in path): x for path, x in leaves}
