"""Commit the lowest-entropy positions while the sum of their entropies stays below a bound.

Source: SDAR (arXiv 2510.06303), `entropy_bounded`, as in its authors' JetEngine: open positions are
sorted by the entropy of the whole distribution, and the k lowest commit, where k is the number of
cumulative sums below `eb_threshold`, at least 1. As in JetEngine, the comparison is strict and the
default is 0.35 nats. The version in SDAR's generate.py can't run.

This is not `entropy_bound` (EB-Sampler), whose sum leaves out the largest entropy and may equal its
bound: that rule bounds the mutual information of a pass's tokens, this one their total
uncertainty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.policies.base import Parameter, Policy, commits, rank
from leapjax.types import ANCHOR, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits; kind anchor within the bound, else top1."""
    place = rank(-proposal.entropy, masked)
    sums = jnp.cumsum(jnp.sort(jnp.where(masked, proposal.entropy, jnp.inf), axis=1), axis=1)
    sums = jnp.take_along_axis(sums, place, axis=1)  # back to the window's order
    within = masked & (sums < info.parameters["eb_threshold"][:, None])
    return commits(within | (masked & (place == 0)), jnp.where(within, ANCHOR, TOP1))


POLICY = Policy(
    name="entropy_bounded",
    source="SDAR, arXiv 2510.06303, entropy_bounded",
    commit=commit,
    parameters=(
        Parameter(
            "eb_threshold", float, "the sum of a pass's entropies stays below it, nats", 0.35, low=0
        ),
    ),
    needs=frozenset({"entropy"}),
)
