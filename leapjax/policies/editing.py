"""Editing: replace committed tokens of the active block for which the proposal has changed.

Source: LLaDA2.1, arXiv 2602.08676; checked against the authors' `generate` and JointThreshold of
SGLang (rules only). In each pass, even while masks remain, a closed position of the active block
that is not given takes the proposed token if it differs and its confidence exceeds
`editing_threshold`. Commits use the same logits. Threshold 0 replaces every changed proposal.

A block stays open after its last mask is gone: see `leapjax.decoding.edits`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.types import REPLACE

if TYPE_CHECKING:
    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def with_edits(decision: Decision, proposal: Proposal, info: Pass) -> Decision:
    """Add the edits of the pass to a decision; in a program without editing, change nothing."""
    if info.decided is None:
        return decision
    sure = proposal.confidence > info.parameters["editing_threshold"][:, None]
    edited = info.decided & sure & (proposal.token != info.standing)
    return decision._replace(action=jnp.where(edited, jnp.int8(REPLACE), decision.action))
