"""The proposal from softmax statistics, without storing all logits.

    hidden -> best ordinary id and sum of exponentials, logits of the special ids -> Proposal

It equals `leapjax.decoding.proposal.propose` up to the rounding of a sum. It serves greedy tokens
and policies that need only the confidence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.decoding.program import Program
from leapjax.decoding.state import RowOptions
from leapjax.models import transformer
from leapjax.models.network import network
from leapjax.types import WHOLE_ROW, Proposal

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from leapjax.models.transformer import Weights

_NEG_INF = np.float32(-np.inf)


def applies(params: Weights, program: Program) -> bool:
    """Whether these weights support a summary and the program needs no more."""
    plain = not (program.guidance or program.sampling or program.holds_masks)
    policy = program.policy
    ready = network(program.model).has_summary(params, program.model)
    more = policy.needs - (WHOLE_ROW - {"recheck"})  # which comes from elsewhere
    return ready and plain and not more and policy.adjust is None


def propose(
    params: Weights, hidden: Float[Array, "B W D"], options: RowOptions, program: Program
) -> Proposal:
    """Choose a token and compute its confidence for each position, from hidden states.

    The proposal has nothing else; the program must be one that `applies`.
    """
    model = program.model
    special = sorted({model.mask_token_id, model.eos_token_id, program.eot_token_id} - {None})
    best, token, total, logits = transformer.head_summary(params, model, hidden, special)
    with jax.named_scope("proposal"):
        base, top, weights = best, best, []  # the ordinary ids' total is relative to `base`
        for i, number in enumerate(special):
            weight = logits[..., i]
            if number == model.eos_token_id:
                weight = jnp.where(options.logits_eos_inf[:, None], _NEG_INF, weight)
            if number != model.mask_token_id:
                # A tie goes to the lowest id.
                wins = (weight > best) | ((weight == best) & (number < token))
                token = jnp.where(wins & ~jnp.isneginf(weight), jnp.int32(number), token)
                best = jnp.maximum(best, weight)
            if number in (model.eos_token_id, program.eot_token_id):
                weight = jnp.where(options.confidence_eos_eot_inf[:, None], _NEG_INF, weight)
            weights.append(weight)
            top = jnp.maximum(top, weight)
        total = total * jnp.exp(base - top)
        for weight in weights:
            total = total + jnp.exp(weight - top)
        return Proposal(token, _confidence(token, best, top, total, options, program))


def _confidence(token, best, top, total, options: RowOptions, program: Program):
    """Softmax probability of the tokens; 0 for muted end tokens."""
    is_end = token == program.model.eos_token_id
    if program.eot_token_id is not None:
        is_end = is_end | (token == program.eot_token_id)
    muted = is_end & options.confidence_eos_eot_inf[:, None]
    return jnp.where(muted, 0.0, jnp.exp(best - top - jnp.log(total)))
