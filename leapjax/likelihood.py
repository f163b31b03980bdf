"""How likely an answer is: a Monte Carlo estimate of a lower bound.

A masked diffusion model gives no log-likelihood of a sequence, only the evidence lower bound

    log p(answer | prompt) >= E_l E_S [ L / l * sum over i in S of log p(token i | the rest) ]

with l uniform on 1..L (L tokens in the answer) and S a uniform set of l tokens, masked together.
It is estimated as by LLaDA's authors (arXiv 2502.09992, equation 6 and appendix B): the numbers
of masks for one answer are spread evenly over 1..L from a random start, which keeps the estimate
unbiased and lowers its variance.

A block-causal model decides each block after the previous blocks. So its bound is a sum of such
bounds, one for each block's part of the answer, given the clean previous blocks (BD3LM, arXiv
2503.09573, equation 8). One pass over a noisy and a clean copy side by side
(`leapjax.training.block_diffusion`) computes a sample of every block. If the model seeds blocks, a
block's first token is never masked: its log-probability given the previous blocks is exact.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leapjax import arguments
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.models import ModelConfig
from leapjax.models.network import network
from leapjax.ops.primitives import take
from leapjax.serve.sizes import bucket
from leapjax.sharding import under_mesh
from leapjax.training import block_diffusion

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Pair = tuple[Sequence[int], Sequence[int]]


class Likelihood(NamedTuple):
    """An estimate of the lower bound.

    Attributes:
      bound: estimate, in nats, of a lower bound on the answer's log-likelihood.
      error: its standard error, in nats, computed as for independent samples. They are spread
        evenly, so the true error is smaller. nan for a single sample.
    """

    bound: float
    error: float


def likelihoods(
    lm: LM,
    pairs: Sequence[Pair],
    *,
    samples: int = 128,
    seed: int = 0,
    batch_size: int = 32,
    show: Callable[[int], None] = lambda done: None,
) -> list[Likelihood]:
    """Estimate a lower bound on each answer's log-likelihood given its prompt.

    A pair's estimate depends only on the pair, `samples` and `seed`, not on the other pairs.

    Args:
      pairs: (prompt ids, answer ids), each with at least one token (Dream needs the prompt's).
      samples: number of masked sequences per pair.
      seed: seed of the masks.
      batch_size: sequences computed at once.
      show: takes the number of finished sequences.

    Returns:
      One Likelihood per pair, in order.

    Raises:
      UserError: a pair is empty or too long, or an id is outside the vocabulary.
    """
    samples = arguments.whole(samples, "samples", 1)
    batch_size = arguments.whole(batch_size, "batch_size", 1)
    seed = arguments.whole(seed, "seed", 0)
    for number, pair in enumerate(pairs, 1):
        _check(pair, number, lm)
    values = [np.zeros(samples) for _ in pairs]
    groups = collections.defaultdict(list)
    for number, (prompt, answer) in enumerate(pairs):
        groups[_shape(len(prompt), len(answer), lm.config)].append(number)
    done = 0
    for (length, window), members in groups.items():
        rows = _rows(pairs, members, samples, seed, lm.config)
        while batch := _take(rows, batch_size):
            evaluate = _evaluate_blocks if lm.config.block_causal else _evaluate
            sums = evaluate(lm, pairs, batch, batch_size, length, window)
            for (number, sample, *_), total in zip(batch, sums, strict=False):
                values[number][sample] = total
            done += len(batch)
            show(done)
    return [Likelihood(float(v.mean()), _error(v)) for v in values]


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _check(pair: Pair, number: int, lm: LM) -> None:
    prompt, answer = pair
    if not len(prompt) or not len(answer):
        raise UserError(f"pair {number}: prompt and answer need at least one token each")
    if len(prompt) + len(answer) > lm.config.max_length:
        raise UserError(
            f"pair {number}: {len(prompt)} + {len(answer)} tokens; the model takes "
            f"{lm.config.max_length}: shorten the prompt (fewer shots)"
        )
    wrong = [i for i in (*prompt, *answer) if not 0 <= i < lm.config.vocab_size]
    if wrong:
        raise UserError(
            f"pair {number}: id {wrong[0]} is outside the vocabulary of {lm.config.vocab_size}"
        )


def _shape(prompt: int, answer: int, config: ModelConfig) -> tuple[int, int]:
    """Columns in all and columns whose logits are read, rounded up so that few are compiled."""
    if not config.block_causal:
        window = 1 << (answer - 1).bit_length()
        return bucket(max(prompt + answer, window + 1)), window
    w = config.block_length or 1
    blocks = -(-(prompt + answer) // w) - prompt // w
    window = w << (blocks - 1).bit_length()
    return max(-(-bucket(prompt + answer) // w) * w, window), window


def masks(
    answer_length: int, samples: int, rng: np.random.Generator
) -> Bool[np.ndarray, "{samples} {answer_length}"]:
    """Which tokens of an answer are masked, for each sample.

    Args:
      answer_length: tokens, at least 1.
      rng: source of the noise.

    Returns:
      (samples, answer_length) bool; the number of masks is uniform on 1..answer_length in
      every sample, and so is the set given its number.

    >>> masks(4, samples=4, rng=np.random.default_rng(0)).sum(axis=1).tolist()
    [4, 1, 2, 3]
    """
    start = rng.integers(answer_length)
    counts = 1 + (start + np.arange(samples) * answer_length // samples) % answer_length
    # The rank of independent noise is a random permutation of each row.
    ranks = rng.random((samples, answer_length)).argsort(axis=1).argsort(axis=1)
    return ranks < counts[:, None]


def weights(
    prompt: int, answer: int, samples: int, config: ModelConfig, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, "{samples} {answer}"], Float[np.ndarray, "{samples} {answer}"]]:
    """The masks of each sample, and the weight of each token's log-probability.

    Args:
      prompt: tokens before the answer.
      answer: tokens of the answer.
      config: of the model; a block-causal one has masks of its own in each block.
      rng: source of the noise.

    Returns:
      (samples, answer) bool and (samples, answer) float64; the weight of a token that is not
      masked is 0, or 1 if it seeds its block.

    >>> from leapjax.testing import tiny_config
    >>> rng, sdar = np.random.default_rng(0), tiny_config("sdar")
    >>> weights(prompt=3, answer=3, samples=1, config=sdar, rng=rng)[1].tolist()  # blocks of 4
    [[1.0, 1.0, 1.0]]
    """
    if config.block_causal:
        blocks = (prompt + np.arange(answer)) // (config.block_length or 1)
        parts = np.split(np.arange(answer), np.flatnonzero(np.diff(blocks)) + 1)
    else:
        parts = [np.arange(answer)]
    masked, weight = np.zeros((samples, answer), bool), np.zeros((samples, answer))
    for part in parts:
        if config.seeds_blocks and (prompt + part[0]) % (config.block_length or 1) == 0:
            weight[:, part[0]] = 1.0
            part = part[1:]
        if len(part):
            masked[:, part] = masks(len(part), samples, rng)
            share = len(part) / masked[:, part].sum(axis=1, keepdims=True)
            weight[:, part] = masked[:, part] * share
    return masked, weight


def _rows(
    pairs: Sequence[Pair], members: Sequence[int], samples: int, seed: int, config: ModelConfig
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    for number in members:
        prompt, answer = ([int(i) for i in part] for part in pairs[number])
        digest = hashlib.blake2b(repr((prompt, answer)).encode(), digest_size=8).digest()
        rng = np.random.default_rng([seed, int.from_bytes(digest, "big")])
        drawn = weights(len(prompt), len(answer), samples, config, rng)
        for sample, (masked, weight) in enumerate(zip(*drawn, strict=True)):
            yield number, sample, masked, weight


def _take(rows: Iterator, count: int) -> list:
    return list(itertools.islice(rows, count))


def _evaluate(lm: LM, pairs, batch, rows: int, length: int, window: int) -> np.ndarray:
    """Weighted sums of the tokens' log-probabilities, (len(batch),) float64."""
    ids = np.full((rows, length), lm.config.pad_token_id, np.int32)
    targets = np.zeros((rows, window), np.int32)
    weights = np.zeros((rows, window), np.float32)
    valid = np.zeros((rows, length), bool)
    valid[:, -1] = True  # rows that nobody needs attend to something
    for row, (number, _, masked, weight) in enumerate(batch):
        prompt, answer = (np.asarray(part, np.int32) for part in pairs[number])
        ids[row, length - len(prompt) - len(answer) :] = np.concatenate(
            [prompt, np.where(masked, lm.config.mask_token_id, answer)]
        )
        valid[row, length - len(prompt) - len(answer) :] = True
        targets[row, window - len(answer) :] = answer
        weights[row, window - len(answer) :] = weight
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)
    replica = lm.replicas[0]
    with under_mesh(replica.placement):
        sums = _sums(replica.params, ids, positions, valid, targets, weights, lm.config, lm.dtype)
    return np.asarray(sums, np.float64)[: len(batch)]


def _evaluate_blocks(lm: LM, pairs, batch, rows: int, length: int, window: int) -> np.ndarray:
    """`_evaluate` of a block-causal model, whose rows begin in column 0."""
    clean = np.full((rows, length), lm.config.pad_token_id, np.int32)
    noisy, places = clean.copy(), np.zeros((rows, window), np.int32)
    weights = np.zeros((rows, length), np.float32)
    valid = np.zeros((rows, length), bool)
    valid[:, 0] = True  # rows that nobody needs attend to something
    w = lm.config.block_length or 1
    for row, (number, _, masked, weight) in enumerate(batch):
        prompt, answer = (np.asarray(part, np.int32) for part in pairs[number])
        begin, end = len(prompt), len(prompt) + len(answer)
        clean[row, :end] = noisy[row, :end] = np.concatenate([prompt, answer])
        noisy[row, begin:end][masked] = lm.config.mask_token_id
        valid[row, :end], weights[row, begin:end] = True, weight
        places[row] = min(begin // w * w, length - window) + np.arange(window)
    replica = lm.replicas[0]
    with under_mesh(replica.placement):
        sums = _block_sums(
            replica.params, noisy, clean, places, valid, weights, lm.config, lm.dtype
        )
    return np.asarray(sums, np.float64)[: len(batch)]


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _sums(params, ids, positions, valid, targets, weights, config, dtype):
    """Weighted log-probabilities of the targets, (B, T), (B, W) -> (B,) float32."""
    b, window = targets.shape
    # Dream predicts position i by the output at i - 1.
    places = ids.shape[1] - window + jnp.arange(window) - int(config.shift_logits)
    outputs = jnp.broadcast_to(places[None, :], (b, window))
    hidden = network(config).hidden_states(
        params, config, ids, positions, valid, jnp.dtype(dtype), outputs
    )
    return _weighted(params, config, hidden, targets, weights)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _block_sums(params, noisy, clean, places, valid, weights, config, dtype):
    """The same from both copies, all but `places` (B, W) of the shape (B, T) -> (B,) float32."""
    hidden = block_diffusion.hidden_states(
        params,
        config,
        take(noisy, places),
        places,
        clean,
        valid,
        block_diffusion.outputs_of(places, config),
        jnp.dtype(dtype),
    )
    return _weighted(params, config, hidden, take(clean, places), take(weights, places))


def _weighted(params, config, hidden, targets, weights):
    """Hidden states (B, W, D) -> weighted log-probabilities of the targets, (B,) float32."""
    logits = network(config).head(params, config, hidden).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=2)[:, :, 0]
    gained = chosen - jax.nn.logsumexp(logits, axis=2)
    return jnp.sum(jnp.where(weights > 0, weights * gained, jnp.float32(0)), axis=1)
