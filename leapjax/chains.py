"""Models with known probabilities: hidden Markov chains to make, to fit and to query exactly.

    synthetic | fit -> LM (family `chain`) -> sample, log_likelihood, log_joint, save

Such a model decodes like any other (`LM.generate`), and its conditionals are exact
(`leapjax.models.chain`). `leapjax.studies.chain_costs` computes the cost of a decode's commits.
Logarithms are natural.

Shapes: B rows, T columns, S states, V vocabulary.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax import checkpoint
from leapjax.arguments import whole
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.models import ModelConfig, chain, parse_config

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

SPECIALS = 2  # eos, which is the pad too, and the mask: the two last ids


def raw_config(states: int, vocab_size: int) -> dict[str, Any]:
    """The config.json of a chain.

    Args:
      vocab_size: V; its last two ids are the eos (and pad) and the mask.
    """
    return {
        "model_type": "chain",
        "states": states,
        "vocab_size": vocab_size,
        "eos_token_id": vocab_size - 2,
        "pad_token_id": vocab_size - 2,
        "mask_token_id": vocab_size - 1,
    }


def synthetic(
    states: int,
    tokens: int,
    eigenvalue: float,
    seed: int = 0,
    *,
    noise: float = 0.0,
    spread: float = 1.0,
) -> LM:
    """A random chain with a chosen second eigenvalue.

    From state s, the chain follows a random cycle with probability 1 - n_s. Otherwise it draws
    the next state from a distribution that is the same for all states. The n_s differ, so some
    tokens nearly determine the next one and others do not. They are scaled such that the largest
    modulus of the transition matrix's eigenvalues other than 1 is `eigenvalue`.

    Args:
      states: S, at least 2.
      tokens: ids that states emit, followed by two special ids. State s emits s modulo `tokens`.
      eigenvalue: in (0, 1); the correlation length is -1 / log(eigenvalue) positions.
      seed: seed of the chain.
      noise: probability that a state emits a random token instead.
      spread: standard deviation of log n_s before scaling.

    Raises:
      UserError: a number is out of its range.

    >>> lm = synthetic(4, 4, 0.9)
    >>> round(second_eigenvalue(lm), 6), round(correlation_length(lm), 2)
    (0.9, 9.49)
    """
    states, tokens = whole(states, "states", 2), whole(tokens, "tokens", 2)
    if not 0 < eigenvalue < 1:
        raise UserError(f"eigenvalue is {eigenvalue}; expected a number between 0 and 1")
    if not 0 <= noise < 1 or spread < 0:
        raise UserError(f"noise is {noise}, spread {spread}; expected 0 <= noise < 1, spread >= 0")
    rng = np.random.default_rng(whole(seed, "seed", 0))
    order = rng.permutation(states)
    cycle = np.zeros((states, states))
    cycle[order, np.roll(order, 1)] = 1
    shared = rng.dirichlet(np.full(states, 2.0))
    scales = np.exp(spread * rng.standard_normal(states))

    def transition(strength: float) -> np.ndarray:
        leave = np.minimum(strength * scales, 1)[:, None]
        return (1 - leave) * cycle + leave * shared

    # Without leaving every eigenvalue has modulus 1; where all states always leave, they are 0.
    low, high = 0.0, 1 / scales.min()
    for _ in range(100):
        middle = (low + high) / 2
        if _second(transition(middle)) > eigenvalue:
            low = middle
        else:
            high = middle
    matrix = transition(low)
    emission = np.zeros((states, tokens))
    emission[np.arange(states), np.arange(states) % tokens] = 1 - noise
    emission += noise * rng.dirichlet(np.ones(tokens), size=states)
    weights = (_stationary(matrix), matrix, np.pad(emission, ((0, 0), (0, SPECIALS))))
    return _model(weights, raw_config(states, tokens + SPECIALS))


def _model(weights: Sequence[np.ndarray], raw: dict[str, Any]) -> LM:
    """A model from probabilities."""
    with np.errstate(divide="ignore"):
        logs = [np.maximum(np.log(w), chain.FLOOR) for w in weights]
    config = parse_config(raw)
    named = zip(("initial", "transition", "emission"), logs, strict=True)
    return LM(chain.init_params(config, dict(named)), config, codec=None)


def _second(matrix: np.ndarray) -> float:
    return float(np.sort(np.abs(np.linalg.eigvals(matrix)))[-2])


def _stationary(matrix: np.ndarray) -> np.ndarray:
    """The distribution that a transition matrix keeps."""
    n = len(matrix)
    equations = np.vstack([matrix.T - np.eye(n), np.ones(n)])
    found = np.linalg.lstsq(equations, np.r_[np.zeros(n), 1.0], rcond=None)[0]
    return np.maximum(found, 0) / np.maximum(found, 0).sum()


def weights_of(lm: LM) -> dict[str, Any]:
    """A chain's weights.

    Raises:
      UserError: not a chain.
    """
    if lm.config.has_attention:
        raise UserError(f"the model is a {lm.config.family}; only a chain has exact likelihoods")
    return lm.params


def second_eigenvalue(lm: LM) -> float:
    """The largest modulus of the transition matrix's eigenvalues other than 1."""
    return _second(np.exp(np.asarray(weights_of(lm)["transition"], np.float64)))


def correlation_length(lm: LM) -> float:
    """Number of positions over which the dependence between states falls to 1 / e."""
    return -1 / math.log(second_eigenvalue(lm))


def save(path: str | Path, lm: LM, files: Mapping[str, bytes | Path] | None = None, **how) -> str:
    """Write a chain as a checkpoint that `leapjax.load` reads.

    Args:
      path: folder to create.
      files: tokenizer files, name -> content.
      **how: `overwrite`, as in `leapjax.checkpoint.save`.

    Returns:
      The hash of the weights.

    Raises:
      UserError: not a chain, or the folder can't be written.
    """
    weights, c = weights_of(lm), lm.config
    raw = raw_config(c.d_model, c.vocab_size)
    raw |= {name: getattr(c, name) for name in raw if name.endswith("_id")}
    return checkpoint.save(path, weights, raw, files or {}, **how)


def sample(lm: LM, count: int, length: int, seed: int = 0) -> Int[np.ndarray, "B T"]:
    """Draw sequences.

    Args:
      seed: of the draws.

    Returns:
      (B, T) int32.

    >>> sample(synthetic(4, 4, 0.9), 2, 5).shape
    (2, 5)
    """
    rng = np.random.default_rng(seed)
    named = weights_of(lm)
    names = ("initial", "transition", "emission")
    parts = [np.exp(np.asarray(named[n], np.float64)) for n in names]
    first, move, emit = (np.cumsum(p, axis=-1) / p.sum(-1, keepdims=True) for p in parts)

    def draw(edges):
        picked = (rng.random(count)[:, None] > edges).sum(1)
        return np.minimum(picked, edges.shape[1] - 1)

    state, out = draw(np.broadcast_to(first, (count, len(first)))), []
    for _ in range(length):
        out.append(draw(emit[state]))
        state = draw(move[state])
    return np.stack(out, axis=1).astype(np.int32)


@functools.partial(jax.jit, static_argnames="config")
def _gained(params, ids, valid, config: ModelConfig):
    return chain.messages(params, config, ids, valid).gained


def log_likelihood(
    lm: LM, ids: Int[np.ndarray, "B T"], attention_mask: Bool[np.ndarray, "B T"] | None = None
) -> Float[np.ndarray, " B"]:
    """Log-probability of the observed tokens of each row.

    Args:
      ids: (B, T) whole numbers; the mask id where a token is not observed.
      attention_mask: (B, T), False where a column is a pad; None: no pads.

    Returns:
      (B,) float64, nats.

    Raises:
      UserError: not a chain, or an id is outside the vocabulary.

    >>> lm = synthetic(4, 4, 0.9)
    >>> mask = lm.config.mask_token_id
    >>> bool(log_likelihood(lm, np.array([[mask, mask]]))[0] == 0)
    True
    """
    ids, valid = rows_of(lm.config, ids, attention_mask)
    return np.asarray(_gained(weights_of(lm), ids, valid, lm.config), np.float64).sum(1)


def log_joint(
    lm: LM, ids: Int[np.ndarray, "B T"], given: Bool[np.ndarray, "B T"]
) -> Float[np.ndarray, " B"]:
    """Log-probability of each row's other tokens, conditional on those that are `given`.

    Args:
      ids: (B, T) whole numbers; the mask id where a token is not observed.

    Returns:
      (B,) float64, nats.

    Raises:
      UserError: as `log_likelihood`.
    """
    before = np.where(given, ids, lm.config.mask_token_id)
    return log_likelihood(lm, ids) - log_likelihood(lm, before)


def rows_of(config: ModelConfig, ids, attention_mask=None) -> tuple[np.ndarray, np.ndarray]:
    """Ids (B, T) int32 and valid columns (B, T) bool, checked; arguments of `log_likelihood`."""
    ids = np.atleast_2d(np.asarray(ids))
    v = config.vocab_size
    if not np.issubdtype(ids.dtype, np.integer) or (
        ids.size and not 0 <= ids.min() <= ids.max() < v
    ):
        raise UserError(f"ids: expected whole numbers from 0 to {v - 1}, of shape (B, T)")
    valid = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask, bool)
    if valid.shape != ids.shape:
        raise UserError(f"attention_mask: shape {valid.shape} is not that of ids {ids.shape}")
    return ids.astype(np.int32), valid


def fit(
    rows: Sequence[Sequence[int]],
    states: int,
    vocab_size: int,
    *,
    iterations: int = 50,
    seed: int = 0,
    smoothing: float = 0.01,
    show: Callable[[int, float], None] = lambda iteration, nats: None,
) -> LM:
    """Fit a chain to sequences of tokens, by expectation maximisation (Baum-Welch).

    The expected counts of the E-step are the gradient of the log-likelihood with respect to the
    logarithms of the weights.

    Args:
      rows: token ids of each sequence, none empty.
      vocab_size: V, special ids included; its last two are eos and mask.
      iterations: number of iterations of expectation maximisation.
      seed: seed of the initial weights.
      smoothing: added to every expected count; with 0, the log-likelihood rises in each iteration.
      show: takes the iteration's index and the mean log-likelihood per token before it.

    Returns:
      The model.

    Raises:
      UserError: no rows, an empty one, or an id outside the vocabulary.
    """
    states = whole(states, "states", 1)
    if not len(rows) or not all(len(r) for r in rows):
        raise UserError("rows: expected sequences of at least one token each")
    config_json = raw_config(states, whole(vocab_size, "vocab_size", SPECIALS + 1))
    config = parse_config(config_json)
    ids = np.full((len(rows), max(map(len, rows))), config.pad_token_id, np.int64)
    valid = np.arange(ids.shape[1])[None, :] < np.array([len(r) for r in rows])[:, None]
    ids[valid] = np.concatenate([np.asarray(r) for r in rows])
    ids, valid = rows_of(config, ids, valid)
    rng = np.random.default_rng(seed)
    shares = np.bincount(ids[valid], minlength=config.vocab_size) / valid.sum()
    start = [
        rng.dirichlet(np.full(states, 5.0)),
        rng.dirichlet(np.full(states, 5.0), size=states),
        rng.dirichlet(np.ones(config.vocab_size), size=states) * (shares + 1e-4),
    ]
    lm = _model(start, config_json)
    for number in range(iterations):
        weights = lm.params
        nats, counts = _expected_counts(weights, ids, valid, config)
        show(number, float(nats) / valid.sum())
        counts = {n: np.asarray(x, np.float64) + smoothing for n, x in counts.items()}
        lm = _model([counts[n] for n in ("initial", "transition", "emission")], config_json)
    return lm


@functools.partial(jax.jit, static_argnames="config")
def _expected_counts(params, ids, valid, config: ModelConfig):
    def total(weights):
        return jnp.sum(chain.messages(weights, config, ids, valid).gained)

    return jax.value_and_grad(total)(params)


def fit_text(
    texts: Sequence[str], states: int, *, longest: int = 160, **how: Any
) -> tuple[LM, dict[str, bytes]]:
    """Fit a chain to the characters of texts.

    Args:
      texts: one sequence each.
      longest: number of characters to read of each text.
      **how: `iterations`, `seed`, `smoothing` and `show`, as in `fit`.

    Returns:
      The model, with a tokenizer of one token per character, and the tokenizer's files for `save`.
      A character that occurs in no text is encoded as the first known one.

    Raises:
      UserError: no text, or an empty one.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    cut = [text[:longest] for text in texts]
    characters = sorted(set("".join(cut)))
    special = {"eos_token": "<|eos|>", "mask_token": "<|mask|>"}
    ids = {c: i for i, c in enumerate([*characters, *special.values()])}
    lm = fit([[ids[c] for c in text] for text in cut], states, len(ids), **how)
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=characters[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in special.values()])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|eos|>"} | special
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(settings)}
    return lm, {name: text.encode() for name, text in files.items()}
