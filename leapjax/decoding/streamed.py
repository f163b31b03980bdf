"""The proposal, piece by piece of the vocabulary, without ever holding all logits.

On a CPU the (B, W, V) logits leave the processor's caches and come back for every look at
them. Pieces of the head are small enough to stay: each gives its best token, its maximum
and its share of the softmax's sum, which are carried along.

    for each piece: hidden -> logits (B, W, C) -> best, token, maximum, sum of exponentials

The same proposal as `leapjax.decoding.proposal.propose` makes from whole logits, up to the
rounding of a sum; for greedy tokens and policies that ask for the confidence alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.decoding.program import Program
from leapjax.decoding.state import RowOptions
from leapjax.models import transformer
from leapjax.types import Proposal

_NEVER = np.float32(-np.inf)


def applies(params, program: Program) -> bool:
    """Whether the parameters come in pieces and the program needs no more than they give."""
    plain = not (program.guidance or program.sampling or program.holds_masks)
    policy = program.policy
    ready = "head_pieces" in params or "head_packed" in params
    return ready and plain and not policy.needs and policy.adjust is None


def propose(params, hidden, options: RowOptions, program: Program) -> Proposal:
    """Choose a token for each position and say how sure the model is of it.

    Args:
      params: the model's pytree with `head_pieces` or `head_packed` (`leapjax.models.layout`).
      hidden: (B, W, D), the window's hidden states.
      options: the rows' numbers.
      program: static structure, for which `applies`.

    Returns:
      A Proposal without margin, entropy and noise.
    """
    if "head_packed" in params:
        return _from_summary(params, hidden, options, program)
    model = program.model
    with jax.named_scope("proposal"):
        rows = hidden.shape[:2]
        best = top = jnp.full(rows, _NEVER)
        token = jnp.zeros(rows, jnp.int32)
        total = jnp.zeros(rows, jnp.float32)
        start = 0
        for logits in transformer.head_in_pieces(params, model, hidden, program.compute_dtype):
            size = logits.shape[-1]
            ids = jnp.arange(start, start + size, dtype=jnp.int32)[None, None, :]
            weighed = candidates = logits
            # Special ids touch the pieces that hold them; the others are left alone.
            if start <= model.eos_token_id < start + size:
                is_eos = ids == model.eos_token_id
                barred = is_eos & options.logits_eos_inf[:, None, None]
                weighed = candidates = jnp.where(barred, _NEVER, logits)
            if start <= model.mask_token_id < start + size:
                candidates = jnp.where(ids == model.mask_token_id, _NEVER, candidates)
            for end in {model.eos_token_id, program.eot_token_id} - {None}:
                if start <= end < start + size:
                    muted = (ids == end) & options.confidence_eos_eot_inf[:, None, None]
                    weighed = jnp.where(muted, _NEVER, weighed)
            here = jnp.max(candidates, axis=-1)
            last = jnp.int32(start + size - 1)
            place = jnp.min(jnp.where(candidates == here[..., None], ids, last), axis=-1)
            token = jnp.where(here > best, place, token)  # the lowest id of equals stays
            best = jnp.maximum(best, here)
            summit = jnp.maximum(top, jnp.max(weighed, axis=-1))
            # A piece of nothing but barred ids has no maximum to measure from.
            base = jnp.where(jnp.isneginf(summit), 0.0, summit)
            total = total * jnp.exp(top - base)
            total = total + jnp.sum(jnp.exp(weighed - base[..., None]), axis=-1)
            top, start = summit, start + size
        return Proposal(token, _confidence(token, best, top, total, options, program))


def _from_summary(params, hidden, options: RowOptions, program: Program) -> Proposal:
    """The same from what the head's kernel says of ordinary ids, and the special ids' logits."""
    model = program.model
    special = sorted({model.mask_token_id, model.eos_token_id, program.eot_token_id} - {None})
    best, token, total, logits = transformer.head_summary(params, model, hidden, special)
    with jax.named_scope("proposal"):
        top, weights = best, []
        base = best  # what the ordinary ids' total is measured from
        for i, number in enumerate(special):
            weight = logits[..., i]
            if number == model.eos_token_id:
                weight = jnp.where(options.logits_eos_inf[:, None], _NEVER, weight)
            if number != model.mask_token_id:
                # The lowest id of equals.
                wins = (weight > best) | ((weight == best) & (number < token))
                token = jnp.where(wins & ~jnp.isneginf(weight), jnp.int32(number), token)
                best = jnp.maximum(best, weight)
            if number in (model.eos_token_id, program.eot_token_id):
                weight = jnp.where(options.confidence_eos_eot_inf[:, None], _NEVER, weight)
            weights.append(weight)
            top = jnp.maximum(top, weight)
        total = total * jnp.exp(base - top)
        for weight in weights:
            total = total + jnp.exp(weight - top)
        return Proposal(token, _confidence(token, best, top, total, options, program))


def _confidence(token, best, top, total, options: RowOptions, program: Program):
    """Softmax probability of the tokens; 0 for muted ends."""
    is_end = token == program.model.eos_token_id
    if program.eot_token_id is not None:
        is_end = is_end | (token == program.eot_token_id)
    muted = is_end & options.confidence_eos_eot_inf[:, None]
    return jnp.where(muted, 0.0, jnp.exp(best - top - jnp.log(total)))
