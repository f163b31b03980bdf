"""Confidence threshold on logits that are raised for previously proposed tokens.

Source: CreditDecoding, arXiv 2510.06133, as in dInfer (`CreditThresholdParallelDecoder` in
decoding/parallel_strategy.py). In each pass, a block's credits decay by beta (0.8), each open
position's top-1 token gains its probability to the power gamma (0.2) as credit, and alpha (0.7)
times log(1 + credit) is added to the logits. The new proposals commit at the threshold, or else
the most confident one does. The defaults are dInfer's; the paper's own were not checked.

As in dInfer, credits cover the whole vocabulary: W V numbers per row. The mask token gets none,
as it is never proposed here. If nothing reaches the threshold, dInfer commits all positions
within 1e-5 of the most confident one; here only that one commits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from leapjax.policies import confidence_threshold
from leapjax.policies.base import Parameter, Policy
from leapjax.policies.parameters import THRESHOLD

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32

    from leapjax.policies.base import Memory, Pass
    from leapjax.types import Decision, Proposal


def memory(w: int, v: int) -> Memory:
    """The credit of each token at each position."""
    return {"credit": ((w, v), np.float32)}


def adjust(
    logits: Float32[Array, "B W V"],
    barred: Bool[Array, "B 1 V"] | Bool[Array, "1 1 V"],
    masked: Bool[Array, "B W"],
    info: Pass,
) -> tuple[Float32[Array, "B W V"], dict[str, Any]]:
    """Add the credit of past proposals to the logits; returns the logits and the memory."""
    numbers = {name: x[:, None, None] for name, x in info.parameters.items()}
    top = jnp.max(logits, axis=-1, keepdims=True)
    total = jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)
    candidates = jnp.where(barred, -jnp.inf, logits)
    best = jnp.max(candidates, axis=-1, keepdims=True)
    # The lowest id of equals, as a proposal takes it.
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None, :]
    first = jnp.min(jnp.where(candidates == best, ids, logits.shape[-1]), axis=-1, keepdims=True)
    gain = jnp.power(jnp.exp(best - top) / total, numbers["credit_power"])  # (B, W, 1)
    gain = jnp.where(masked[..., None] & (ids == first), gain, 0.0)
    credit = info.memory["credit"] * numbers["credit_decay"] + gain
    return logits + numbers["credit_weight"] * jnp.log1p(credit), {"credit": credit}


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits; kind anchor at the threshold, else top1.

    Confidences have the credits in them.
    """
    return confidence_threshold.commit(proposal, masked, info)._replace(memory=info.memory)


POLICY = Policy(
    name="credit",
    source="CreditDecoding, arXiv 2510.06133",
    commit=commit,
    parameters=(
        THRESHOLD,
        Parameter("credit_weight", float, "weight of past proposals", 0.7, low=0),
        Parameter(
            "credit_power",
            float,
            "a proposal's credit is its probability to this power",
            0.2,
            low=0,
        ),
        Parameter(
            "credit_decay",
            float,
            "share of a token's credit that is left after a pass",
            0.8,
            low=0,
            high=1,
        ),
    ),
    label="credit (0.9; 0.7, 0.2, 0.8)",
    memory=memory,
    adjust=adjust,
)
