"""Commit the most confident position of each run of masks, and all that are confident enough.

Source: dInfer, arXiv 2510.08666, hierarchical decoding: known tokens cut the block into runs of
masks, and each run may be cut again in one pass. Checked against its `HierarchyDecoder`
(decoding/parallel_strategy.py): a run's maximum commits if it is above `low_threshold` (0.4
there), every position above `threshold` commits, and the block's most confident always. As in
dInfer, both comparisons are strict, and all positions tied for a run's maximum commit. dInfer has
no default for `threshold`; 0.9 is Fast-dLLM's, and dInfer's evaluation guide uses 0.8 with 0.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.policies.base import Parameter, Policy, commits, surest
from leapjax.policies.parameters import THRESHOLD
from leapjax.types import ANCHOR, PROPAGATED, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32

    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def run_maximum(
    confidence: Float32[Array, "B W"], masked: Bool[Array, "B W"]
) -> Float32[Array, "B W"]:
    """The largest confidence in each masked position's run of masks; -1 where not masked.

    >>> confidence, masked = jnp.array([[0.25, 0.5, 0.125]]), jnp.array([[True, True, False]])
    >>> run_maximum(confidence, masked).tolist()
    [[0.5, 0.5, -1.0]]
    """
    score = jnp.where(masked, confidence, np.float32(-1.0))
    edge = jnp.zeros_like(masked[:, :1])
    begins = ~(masked & jnp.concatenate([edge, masked[:, :-1]], axis=1))
    ends = ~(masked & jnp.concatenate([masked[:, 1:], edge], axis=1))

    def join(a, b):
        return a[0] | b[0], jnp.where(b[0], b[1], jnp.maximum(a[1], b[1]))

    _, from_left = lax.associative_scan(join, (begins, score), axis=1)
    _, from_right = lax.associative_scan(join, (ends, score), axis=1, reverse=True)
    return jnp.maximum(from_left, from_right)


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits.

    Kinds are anchor above the threshold, propagated for a run's maximum, else top1.
    """
    confidence = proposal.confidence
    sure = masked & (confidence > info.parameters["threshold"][:, None])
    best = masked & (confidence == run_maximum(confidence, masked))
    best = best & (confidence > info.parameters["low_threshold"][:, None])
    kind = jnp.where(sure, ANCHOR, jnp.where(best, PROPAGATED, TOP1))
    return commits(sure | best | surest(confidence, masked), kind)


POLICY = Policy(
    name="hierarchy",
    source="dInfer, arXiv 2510.08666",
    commit=commit,
    parameters=(
        THRESHOLD,
        Parameter(
            "low_threshold",
            float,
            "confidence that the most confident position of a run of masks needs",
            0.4,
            low=0,
            high=1,
            at_most="threshold",
        ),
    ),
    label="hierarchy (0.9, 0.4)",
)
