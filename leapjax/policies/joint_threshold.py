"""Commit all above the threshold, or the most confident if these are too few; edit the rest.

Source: LLaDA2.1, arXiv 2602.08676; checked against the authors' `generate` and JointThreshold of
SGLang. Both comparisons are strict, as there. At least `num_to_transfer` open positions commit in a
pass; closed positions of the block may be edited (`leapjax.policies.editing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.policies.base import Parameter, Policy, best_of, commits
from leapjax.policies.editing import with_edits
from leapjax.policies.parameters import EDITING_THRESHOLD, MAX_POST_STEPS, THRESHOLD
from leapjax.types import ANCHOR, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose what this pass commits (kind anchor above the threshold, else top1) and edits."""
    least = info.parameters["num_to_transfer"]
    sure = masked & (proposal.confidence > info.parameters["threshold"][:, None])
    enough = (jnp.sum(sure, axis=1, dtype=jnp.int32) >= least)[:, None]
    chosen = jnp.where(enough, sure, best_of(proposal.confidence, masked, least))
    decision = commits(chosen, jnp.where(sure, ANCHOR, TOP1))
    return with_edits(decision, proposal, info)


POLICY = Policy(
    name="joint_threshold",
    source="LLaDA2.1, arXiv 2602.08676",
    commit=commit,
    parameters=(
        THRESHOLD.with_default(0.95),
        EDITING_THRESHOLD.with_default(0.9),
        MAX_POST_STEPS,
        Parameter("num_to_transfer", int, "fewest positions that a pass commits", 1, low=1),
    ),
    label="joint threshold (0.95, editing 0.9)",
)
