"""The masked diffusion objective of LLaDA (arXiv 2502.09992, equations 3 and 5).

    t ~ U(0, 1),  p = (1 - eps) t + eps,  each trainable token masked with probability p
    loss of a row = sum over masked positions of cross-entropy / p, divided by the length

The length is the number of trainable tokens: the whole row for plain text, the answer and
its eos padding for prompt and response, whose prompt is never masked. Where the data says so
(`unseen`), a row is instead what a decoder of blocks meets: what lies before the block is
given, the block is masked and scored as above, all behind it is masked and not scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from leapjax.models import transformer
from leapjax.models.config import ModelConfig
from leapjax.ops.arrangement import for_training

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32, Int32, Key

EPS = 1e-3  # the least masking probability; bounds the weight 1 / p by 1000


def mask_probabilities(key: Key[Array, ""], rows: int) -> Float32[Array, " {rows}"]:
    """One masking probability a row, spread evenly over (0, 1) within the batch.

    A single uniform offset and one row in each of B equal strata: every row's t is uniform, and the
    batch covers all ratios (low discrepancy, as in arXiv 2107.00630). All lie in [eps, 1].
    """
    t = (jax.random.uniform(key, ()) + jnp.arange(rows, dtype=jnp.float32) / rows) % 1.0
    return (1.0 - EPS) * t + EPS


def corrupt(
    key: Key[Array, ""],
    ids: Int32[Array, "B T"],
    trainable: Bool[Array, "B T"],
    mask_token_id: int,
    unseen: Bool[Array, "B T"] | None = None,
    floor: Float32[Array, ""] | None = None,
) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"], Float32[Array, " B"]]:
    """Mask each trainable token with its row's probability.

    Prompts and pads are not `trainable`: they stay as they are. `unseen` tokens are always masked
    and never scored; `floor` is the least masking probability (None: `EPS`). Returns the noisy ids,
    the masked tokens that are scored, and p.
    """
    ratio_key, token_key = jax.random.split(key)
    p = mask_probabilities(ratio_key, ids.shape[0])
    if floor is not None:
        p = floor + (1.0 - floor) * p
    masked = (jax.random.uniform(token_key, ids.shape) < p[:, None]) & trainable
    hidden = masked if unseen is None else masked | unseen
    return jnp.where(hidden, mask_token_id, ids), masked, p


def masked_nats(
    logits: Float32[Array, "B W V"], targets: Int32[Array, "B W"], masked: Bool[Array, "B W"]
) -> Float32[Array, "B W"]:
    """Cross-entropy of masked tokens (nats), 0 elsewhere; logits[:, i] predicts targets[:, i]."""
    top = jax.nn.logsumexp(logits, axis=-1)
    nats = top - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.where(masked, nats, 0.0)


def weighted_loss(
    logits: Float32[Array, "B W V"],
    targets: Int32[Array, "B W"],
    masked: Bool[Array, "B W"],
    trainable: Bool[Array, "B W"],
    p: Float32[Array, " B"],
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """The objective, and the plain mean cross-entropy of masked tokens (both in nats), from logits.

    `logits[:, i]` predicts `targets[:, i]`; `masked` lies within `trainable`, the tokens that count
    for the length; `p` are the rows' masking probabilities.
    """
    nats = masked_nats(logits, targets, masked)
    length = jnp.maximum(jnp.sum(trainable, axis=1, dtype=jnp.float32), 1.0)
    rows = jnp.sum(nats, axis=1) / p / length
    count = jnp.maximum(jnp.sum(masked, dtype=jnp.float32), 1.0)
    return jnp.mean(rows), jnp.sum(nats) / count


def loss(
    params: Mapping[str, Any],
    config: ModelConfig,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
    window: int,
    balance: float = 0.0,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """The objective of one batch, and the mean cross-entropy of masked tokens, in nats.

    `batch` has `ids` (B, T) int32, `valid` (B, T) bool (False: pad), `trainable` (B, T) bool and
    perhaps `unseen` (B, T) bool and `floor` () float32 (see `corrupt`); nothing before the last
    `window` columns is trainable. `window` is static: the logits of that many columns at the end
    are computed. `balance` is static: the weight of the load-balancing loss of experts, which the
    gradient has and the returned loss has not (`leapjax.ops.experts.with_balance`).
    """
    ids, valid, trainable = batch["ids"], batch["valid"], batch["trainable"]
    noisy, masked, p = corrupt(
        key, ids, trainable, config.mask_token_id, batch.get("unseen"), batch.get("floor")
    )
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    weights = for_training(params, config, balance)
    hidden = transformer.hidden_states(weights, config, noisy, positions, valid)
    start = ids.shape[1] - window
    if config.shift_logits:
        # Position i is read at output i - 1; the first column has none and can't be learnt.
        hidden = jnp.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1)
        masked = masked & (jnp.arange(ids.shape[1]) > 0)[None, :]
    rows = hidden[:, start:].reshape(1, -1, config.d_model)
    logits = transformer.head(weights, config, rows).reshape(ids.shape[0], window, -1)
    return weighted_loss(logits, ids[:, start:], masked[:, start:], trainable[:, start:], p)
