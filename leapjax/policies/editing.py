"""Editing: committed tokens of the active block that the model now proposes otherwise.

Source: LLaDA2.1, arXiv 2602.08676; checked against the authors' `generate` and JointThreshold of
SGLang (rules only). In each pass, from the same logits as the commits, a closed position of the
active block that is not given takes the proposed token if that is another one and its confidence
exceeds `editing_threshold`; also while masks remain. Threshold 0 rewrites every changed proposal.

A block stays open after its last mask: `leapjax.decoding.edits` says until when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.types import REPLACE

if TYPE_CHECKING:
    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def with_edits(decision: Decision, proposal: Proposal, info: Pass) -> Decision:
    """A decision, with the edits of the pass; as it is in a program without editing."""
    if info.decided is None:
        return decision
    sure = proposal.confidence > info.parameters["editing_threshold"][:, None]
    edited = info.decided & sure & (proposal.token != info.standing)
    return decision._replace(action=jnp.where(edited, jnp.int8(REPLACE), decision.action))
