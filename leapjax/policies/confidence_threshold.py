"""Commit every masked position that is sure enough, and always the surest.

Source: arXiv 2505.22618 (Fast-dLLM), confidence-aware parallel decoding.
"""

from __future__ import annotations

import jax.numpy as jnp

from leapjax.policies.base import Policy, surest
from leapjax.types import ANCHOR, TOP1, Decision


def commit(proposal, masked, info):
    """Choose the positions that this pass commits.

    Args:
      proposal: `.confidence` (B, W) float32 in [0, 1].
      masked: (B, W) bool, the active block's open positions.
      info: `.options.threshold` (B,) float32, a probability.

    Returns:
      A Decision; kind anchor where the threshold is reached, else top1.
    """
    sure = masked & (proposal.confidence >= info.options.threshold[:, None])
    kind = jnp.where(sure, ANCHOR, TOP1).astype(jnp.int8)
    return Decision(sure | surest(proposal.confidence, masked), kind)


POLICY = Policy(
    name="confidence_threshold",
    source="arXiv 2505.22618",
    defaults={"threshold": 0.9},
    commit=commit,
)
