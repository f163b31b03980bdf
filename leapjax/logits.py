"""A model's raw output on ids of any shape, with what was given checked."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.arguments import whole
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.models.network import network


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _logits(params, ids, positions, valid, config: ModelConfig, dtype):
    own = network(config)
    hidden = own.hidden_states(params, config, ids, positions, valid, jnp.dtype(dtype))
    return own.head(params, config, hidden)


def logits(
    params: Any,
    config: ModelConfig,
    dtype: str,
    ids: Any,
    attention_mask: Any = None,
    block_length: int | None = None,
):
    """See `LM.logits`.

    `ids`: (B, T) or (T,) integers; `attention_mask`: (B, T), 0 or False where a column is a pad;
    `block_length`: tokens per block of block-causal attention; None is the checkpoint's. Raises
    UserError: an id is outside the vocabulary, the shapes don't agree, or there are no blocks.
    """
    array = np.atleast_2d(np.asarray(ids))
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"ids: expected whole numbers of shape (B, T), got {array.shape}")
    if array.size and not (0 <= array.min() and array.max() < config.vocab_size):
        raise UserError(
            f"ids: {array.min()} to {array.max()} leave the vocabulary of {config.vocab_size}"
        )
    if attention_mask is None:
        valid = np.ones(array.shape, bool)
    else:
        valid = np.atleast_2d(np.asarray(attention_mask)).astype(bool)
        if valid.shape != array.shape:
            raise UserError(f"attention_mask: shape {valid.shape} is not that of ids {array.shape}")
    if block_length is not None:
        if not config.block_causal:
            raise UserError(
                f"block_length: attention of {config.family} is bidirectional, without blocks; "
                "leave it out"
            )
        # Blocks beyond the end are one program, whatever their length.
        length = min(whole(block_length, "block_length", 1), max(array.shape[1], 1))
        config = config.with_block_length(length)
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)
    return _logits(params, array.astype(np.int32), positions, valid, config, dtype)
