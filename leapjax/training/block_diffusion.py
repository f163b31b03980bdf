"""The block diffusion objective, for models with block-causal attention.

    columns    noisy blocks that are trained, W | the clean row, T
    a query    in noisy block b attends to noisy block b and to clean blocks < b,
               in clean block b to clean blocks <= b

    t ~ U(0, 1) for each block,  p = (1 - eps) t + eps,  each trainable token masked with its p
    loss of a row = sum over masked positions of cross-entropy / p, divided by the row's length

Source: BD3LM (arXiv 2503.09573), whose bound is the sum over blocks b of
E_t E_q [-1/t log p(x^b | x_t^b, x^<b)] under the linear schedule. Copies and mask are those of its
training and of SDAR (arXiv 2510.06303), whose code has the same 1 / p and divides by the number of
answer tokens in the batch; here, as in `objective`, each row is divided by its own. SDAR's code
draws one t for a whole answer; BD3LM and Fast-dLLM v2 (arXiv 2509.26328) draw one a block. Blocks
begin at multiples of their length, counted from the row's first token, so a block may begin with
prompt tokens, which are never masked. Both copies have the same rotary positions: a noisy block is
computed as a decoder computes it against the finished blocks.

With `shift_logits` the output at i - 1 predicts position i: that of the noisy copy, but for a
block's first token that of the clean copy. A decoder of `seeds_blocks` models takes this token
from the pass that stores the finished block before, which is the clean copy of that block. So
it is known before the block's first pass. It is therefore never masked, is always scored, and
its p is 1: the loss stays a bound of the answer's likelihood,
log p(block) = log p(first | blocks before) + log p(rest | first, blocks before).

Fast-dLLM v2's own training reads that token from the noisy copy of the block before, where no
decoder reads it, masks it as any other token, weights all masked tokens alike, and gives each row
twice, with complementary masks. Not so here: complementary masks would double the cost; the levels
are stratified over the batch's blocks instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from leapjax.models import transformer
from leapjax.models.config import ModelConfig
from leapjax.ops.arrangement import for_training
from leapjax.ops.primitives import take
from leapjax.training.objective import mask_probabilities, masked_nats

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Bool, Float, Float32, Int32, Key


def side_by_side(
    noisy: Int32[Array, "B W"], clean: Int32[Array, "B T"], length: int
) -> Bool[Array, "B W+T W+T"]:
    """The attention mask of noisy and clean columns, by position, in blocks of `length` tokens.

    >>> import numpy as np
    >>> place = np.arange(4)[None]
    >>> side_by_side(place[:, 2:], place, 2)[0].astype(int).tolist()  # the last block is noisy
    ... # doctest: +NORMALIZE_WHITESPACE
    [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0],
     [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    """
    block = jnp.concatenate([noisy, clean], axis=1) // length
    is_clean = jnp.arange(block.shape[1])[None, :] >= noisy.shape[1]
    queries, keys = block[:, :, None], block[:, None, :]
    earlier = (keys < queries) & is_clean[:, None, :]
    return earlier | ((keys == queries) & (is_clean[:, :, None] == is_clean[:, None, :]))


def corrupt(
    key: Key[Array, ""],
    ids: Int32[Array, "B T"],
    trainable: Bool[Array, "B T"],
    config: ModelConfig,
    floor: Float32[Array, ""] | None = None,
) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"], Float32[Array, "B T"]]:
    """Mask each trainable token with its block's probability.

    Rows begin in column 0. Prompts and pads are not `trainable`: they stay as they are. `floor` is
    the least masking probability (None: `objective.EPS`). Returns the noisy ids, the scored tokens
    (those masked, and those that seed their block) and p.
    """
    ratio_key, order_key, token_key = jax.random.split(key, 3)
    rows, columns = ids.shape
    length = config.block_length or columns
    blocks = -(-columns // length)
    # One block in each of B x blocks equal strata; in random order, so that neither a row nor a
    # place in the row has levels of its own.
    p = mask_probabilities(ratio_key, rows * blocks)
    if floor is not None:
        p = floor + (1.0 - floor) * p
    p = jax.random.permutation(order_key, p).reshape(rows, blocks)
    p = jnp.repeat(p, length, axis=1)[:, :columns]
    masked = (jax.random.uniform(token_key, ids.shape) < p) & trainable
    scored = masked
    place = jnp.arange(columns)[None, :]
    if config.seeds_blocks:
        seed = trainable & (place % length == 0)
        masked = masked & ~seed
        scored = masked | seed
        p = jnp.where(seed, 1.0, p)
    if config.shift_logits:
        scored = scored & (place > 0)  # no output predicts a row's first token
    return jnp.where(masked, config.mask_token_id, ids), scored, p


def hidden_states(
    params: Any,
    config: ModelConfig,
    noisy: Int32[Array, "B W"],
    places: Int32[Array, "B W"],
    clean: Int32[Array, "B T"],
    valid: Bool[Array, "B T"],
    outputs: Int32[Array, "B O"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B columns D"]:
    """One forward pass over whole noisy blocks and the clean row.

    `places` are the noisy columns' places in the row; `valid` is False at the row's pads; `outputs`
    are the columns of the W + T to return (None: all). The result is in `dtype`, before the final
    norm.
    """
    own = jnp.broadcast_to(jnp.arange(clean.shape[1], dtype=jnp.int32)[None, :], clean.shape)
    mask = side_by_side(places, own, config.block_length or clean.shape[1])
    mask = mask & jnp.concatenate([take(valid, places), valid], axis=1)[:, None, :]
    ids, positions = (jnp.concatenate(x, axis=1) for x in ((noisy, clean), (places, own)))
    return transformer.hidden_states(params, config, ids, positions, mask, dtype, outputs)


def outputs_of(places: Int32[Array, "B W"], config: ModelConfig) -> Int32[Array, "B W"]:
    """The columns of `hidden_states` whose outputs predict the noisy columns' tokens.

    >>> from leapjax.testing import tiny_config
    >>> outputs_of(jnp.arange(8, 12)[None], tiny_config("fast_dllm_v2")).tolist()  # 8 opens a block
    [[11, 0, 1, 2]]
    """
    window = places.shape[1]
    own = jnp.arange(window, dtype=jnp.int32)[None, :]
    if not config.shift_logits:
        return jnp.broadcast_to(own, places.shape)
    in_clean = jnp.maximum(window + places - 1, window)
    return jnp.where(places % (config.block_length or window) == 0, in_clean, own - 1)


def loss(
    params: Mapping[str, Any],
    config: ModelConfig,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
    window: int,
    balance: float = 0.0,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """The objective of one batch.

    `batch` has `ids` (B, T) int32, `valid` (B, T) bool (False: pads, on the right), `trainable`
    (B, T) bool and perhaps `floor` () float32 (see `corrupt`). Rows begin in column 0. `window` is
    W <= T, static: columns of whole blocks, enough for all of a row that are trained. `balance` is
    that of `objective.loss`. Returns the loss and the mean cross-entropy of scored tokens, in nats.
    """
    ids, trainable = batch["ids"], batch["trainable"]
    rows, columns = ids.shape
    length = config.block_length or columns
    noisy, scored, p = corrupt(key, ids, trainable, config, batch.get("floor"))
    first = jnp.argmax(trainable, axis=1).astype(jnp.int32) // length * length
    first = jnp.minimum(first, columns - window)[:, None]
    places = first + jnp.arange(window, dtype=jnp.int32)[None, :]
    outputs = outputs_of(places, config)
    weights = for_training(params, config, balance)
    hidden = hidden_states(
        weights, config, take(noisy, places), places, ids, batch["valid"], outputs
    )
    logits = transformer.head(weights, config, hidden.reshape(1, -1, config.d_model))
    scored = take(scored, places)
    nats = masked_nats(logits.reshape(rows, window, -1), take(ids, places), scored)
    lengths = jnp.maximum(jnp.sum(trainable, axis=1, dtype=jnp.float32), 1.0)
    total = jnp.mean(jnp.sum(nats / take(p, places), axis=1) / lengths)
    count = jnp.maximum(jnp.sum(scored, dtype=jnp.float32), 1.0)
    return total, jnp.sum(nats) / count
