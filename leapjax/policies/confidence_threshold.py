"""Commit every masked position that is confident enough, and always the most confident one.

Source: arXiv 2505.22618 (Fast-dLLM), confidence-aware parallel decoding. A confidence equal to the
threshold suffices, as in the authors' code. Fast-dLLM v2 (arXiv 2509.26328) compares strictly, so
the two differ only at equality. At threshold 1, its default, both commit only the most confident.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.policies.base import Policy, commits, reaches, surest
from leapjax.policies.parameters import THRESHOLD
from leapjax.types import ANCHOR, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits; kind anchor at the threshold, else top1."""
    sure = masked & reaches(proposal.confidence, info.parameters["threshold"])
    kind = jnp.where(sure, ANCHOR, TOP1)
    return commits(sure | surest(proposal.confidence, masked), kind)


POLICY = Policy(
    name="confidence_threshold",
    source="arXiv 2505.22618",
    commit=commit,
    parameters=(THRESHOLD,),
    rows=(("threshold", 0, "confidence threshold 0.9"),),
)
