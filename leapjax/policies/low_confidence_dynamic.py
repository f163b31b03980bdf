"""Commit every position above the threshold, and at least the quota of most confident ones.

Source: SDAR (arXiv 2510.06303), `low_confidence_dynamic`; checked against the authors' generate.py
and evaluation (`block_diffusion_generate`). LLaDA2.0's `generate` has the same rule. The comparison
is strict, as there. A float32 probability is at most 1, so with threshold 1 exactly the quota
commits: SDAR's `low_confidence_static`. With a quota of 1, this is the threshold rule of Fast-dLLM
v2 (arXiv 2509.26328).

If the quota exceeds the open positions, the authors' generate.py may commit given tokens; here, as
in their evaluation, all open positions commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.policies.base import Policy, best_of, commits
from leapjax.policies.parameters import SCHEDULED, THRESHOLD
from leapjax.types import ANCHOR, SCHEDULE

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits.

    The kind is anchor if enough positions are above the threshold, else schedule.
    """
    sure = masked & (proposal.confidence > info.parameters["threshold"][:, None])
    enough = (jnp.sum(sure, axis=1, dtype=jnp.int32) >= info.quota)[:, None]
    chosen = jnp.where(enough, sure, best_of(proposal.confidence, masked, info.quota))
    return commits(chosen, jnp.where(enough, ANCHOR, SCHEDULE))


POLICY = Policy(
    name="low_confidence_dynamic",
    source="SDAR, arXiv 2510.06303, low_confidence_dynamic",
    commit=commit,
    parameters=(*SCHEDULED, THRESHOLD),
    main=("threshold",),
    rows=(("low-confidence-dynamic", 1, "low-confidence dynamic (0.9), one token a step or more"),),
)
