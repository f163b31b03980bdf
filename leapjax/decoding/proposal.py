"""From logits to a proposal: a token and its confidence for each position of the window.

Confidence is the float32 softmax probability of the chosen token before temperature, top-p and
top-k (LLaDA's convention, for every family). It is computed from a maximum and a log-sum-exp; the
softmax is never materialised. The mask token is never chosen, because a loop that commits it would
stall, but it keeps its share of the softmax.

Dream's schedule differs, as in its original: its number of passes is fixed. A position whose top-1
token is the mask has the mask's probability as its confidence. If chosen, it is `held` open. The
last pass holds nothing.

Shapes: B rows, W window, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.decoding.program import Program
from leapjax.decoding.state import RowOptions
from leapjax.types import Proposal

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32, Int32, Key

_NEG_INF = np.float32(-np.inf)


def guided(
    conditional: Float32[Array, "B W V"],
    unconditional: Float32[Array, "B W V"],
    scale: Float32[Array, " B"],
) -> Float32[Array, "B W V"]:
    """Classifier-free guidance: `un + (scale + 1) (cond - un)`; scale 0 changes nothing.

    `unconditional` are the logits with the prompt masked.

    >>> with_prompt, without = jnp.array([[[2.0, 0.0]]]), jnp.array([[[1.0, 1.0]]])
    >>> guided(with_prompt, without, scale=jnp.array([1.0])).tolist()
    [[[3.0, -1.0]]]
    """
    s = scale[:, None, None]
    mixed = unconditional + (s + 1) * (conditional - unconditional)
    return jnp.where(s == 0, conditional, mixed)  # bit for bit the unguided logits


def never_proposed(v: int, options: RowOptions, program: Program) -> Bool[Array, "B 1 {v}"]:
    """(B, 1, V) bool, ids that a row may not propose: the mask, and eos with `logits_eos_inf`."""
    vocabulary = jnp.arange(v, dtype=jnp.int32)[None, None, :]
    no_eos = (vocabulary == program.model.eos_token_id) & options.logits_eos_inf[:, None, None]
    return no_eos | (vocabulary == program.model.mask_token_id)


def propose(
    logits: Float32[Array, "B W V"],
    options: RowOptions,
    noise_keys: Key[Array, "B W"] | None,
    last_pass: Bool[Array, " B"] | None,
    program: Program,
    log_frequency: Float32[Array, " V"] | None = None,
) -> Proposal:
    """Choose a token and compute its confidence for each position.

    Guidance is applied to `logits` already. `noise_keys` are one per (row, step, position); None
    unless the program samples or its policy needs uniform noise. `last_pass` is the schedule's last
    pass over the row, which only Dream's schedule reads; otherwise it may be None. `log_frequency`
    is the log of each token's share of a corpus, used if the policy needs `surprise`; None means
    equally frequent tokens. Fields of the proposal from `margin` on are set only if the policy
    needs them; `recheck` is not.
    """
    model, needs = program.model, program.policy.needs
    with jax.named_scope("proposal"):
        vocabulary = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None, :]
        is_eos = vocabulary == model.eos_token_id
        logits = jnp.where(is_eos & options.logits_eos_inf[:, None, None], _NEG_INF, logits)
        candidates = jnp.where(vocabulary == model.mask_token_id, _NEG_INF, logits)
        token = _first_argmax(_scores(candidates, options, noise_keys, program), vocabulary)
        held, weighed_ids = None, token
        last = last_pass if program.holds_masks else None
        if last is not None:
            held = _first_argmax(_scores(logits, options, noise_keys, program), vocabulary)
            held = (held == model.mask_token_id) & ~last[:, None]
            weighed_ids = jnp.where(held, jnp.int32(model.mask_token_id), token)
        # Muted end tokens can be chosen like any other, but have no weight in the softmax.
        is_end = is_eos
        if program.eot_token_id is not None:
            is_end = is_end | (vocabulary == program.eot_token_id)
        muted = is_end & options.confidence_eos_eot_inf[:, None, None]
        weighed = jnp.where(muted, _NEG_INF, logits)
        top = jnp.max(weighed, axis=-1)
        total = top + jnp.log(jnp.sum(jnp.exp(weighed - top[..., None]), axis=-1))  # (B, W)
        # A masked maximum instead of a gather keeps a sharded vocabulary sharded.
        is_chosen = vocabulary == weighed_ids[..., None]
        chosen = jnp.max(jnp.where(is_chosen, weighed, _NEG_INF), axis=-1)
        confidence = jnp.exp(chosen - total)
        margin = entropy = uniform = surprise = log_probs = None
        if "margin" in needs:
            is_mask = vocabulary == model.mask_token_id
            barred = is_mask if last is None else is_mask & last[:, None, None]
            open_logits = jnp.where(barred, _NEG_INF, weighed)
            best = jnp.max(open_logits, axis=-1)
            first = vocabulary == _first_argmax(open_logits, vocabulary)[..., None]
            second = jnp.max(jnp.where(first, _NEG_INF, open_logits), axis=-1)
            margin = jnp.exp(best - total) - jnp.exp(second - total)
        if "entropy" in needs:
            log_p = weighed - total[..., None]
            terms = jnp.where(jnp.isneginf(log_p), 0.0, jnp.exp(log_p) * log_p)
            entropy = -jnp.sum(terms, axis=-1)
        if "uniform" in needs:
            draw = jax.vmap(jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 1))))
            uniform = draw(noise_keys)
        if "surprise" in needs:
            if log_frequency is None:
                known = jnp.full(token.shape, -np.log(logits.shape[-1]), jnp.float32)
            else:
                known = log_frequency[token]
            surprise = -known
        if "log_probs" in needs:
            log_probs = weighed - total[..., None]
    return Proposal(token, confidence, margin, entropy, uniform, held, surprise, log_probs)


def probability(logits: Float32[Array, "B W V"], ids: Int32[Array, "B W"]) -> Float32[Array, "B W"]:
    """Softmax probability of ids: (B, W, V) logits, (B, W) ids -> (B, W) float32."""
    vocabulary = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None, :]
    top = jnp.max(logits, axis=-1)
    total = top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
    chosen = jnp.max(jnp.where(vocabulary == ids[..., None], logits, _NEG_INF), axis=-1)
    return jnp.exp(chosen - total)


def _first_argmax(score, vocabulary):
    """Index of the largest score along V, as (B, W) int32; a tie goes to the lowest index.

    Two plain reductions vectorise where a variadic argmax does not. Across vocabulary shards they
    need one maximum and one minimum.
    """
    best = jnp.max(score, axis=-1, keepdims=True)
    limit = jnp.int32(score.shape[-1] - 1)
    return jnp.min(jnp.where(score == best, vocabulary, limit), axis=-1)


def _scores(candidates, options: RowOptions, keys, program: Program):
    """The scores whose argmax is the chosen token: logits, plus noise for rows that sample."""
    return _noisy(candidates, options, keys, program) if program.sampling else candidates


def _noisy(candidates, options: RowOptions, keys, program: Program):
    """Gumbel-max scores: their argmax is a draw from the tempered, filtered softmax.

    The noise is high-precision, because float32 uniforms can't reach the tail of a large
    vocabulary (arXiv 2409.02908).
    """
    v = candidates.shape[-1]

    def gumbel(key):
        return jax.random.gumbel(jax.random.fold_in(key, 0), (v,), jnp.float32, mode="high")

    noise = jax.vmap(jax.vmap(gumbel))(keys)
    temperature = options.temperature[:, None, None]
    kept = candidates
    if program.filtering:
        kept = _filtered(candidates, temperature, options)
    return jnp.where(temperature > 0, kept + temperature * noise, candidates)


def _filtered(candidates, temperature, options: RowOptions):
    """Apply top-p, then top-k; tokens that tie with the last kept one stay.

    Source: Dream's sampler (arXiv 2508.15487): temperature, then top-p, then top-k.
    """
    scaled = candidates / jnp.where(temperature > 0, temperature, 1.0)
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    mass = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(mass, axis=-1) - mass  # probability of everything more likely
    in_p = before < options.top_p[:, None, None]
    in_p = in_p | (options.top_p[:, None, None] >= 1.0)
    rank = jnp.arange(candidates.shape[-1], dtype=jnp.int32)[None, None, :]
    k = options.top_k[:, None, None]
    in_k = (k == 0) | (rank < k)
    cutoff = jnp.min(jnp.where(in_p & in_k, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled >= cutoff, candidates, _NEG_INF)
