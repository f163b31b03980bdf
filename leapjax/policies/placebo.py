"""A control for LocalLeap: the same neighbourhoods around randomly drawn open positions.

Source: ours, as a placebo for arXiv 2510.07081. Anchors commit as in LocalLeap. As many open
positions as there are anchors are drawn at random; within `radius` of a drawn one, the relaxed
threshold suffices. Number and size of the neighbourhoods are LocalLeap's, but their places are
random: any advantage of LocalLeap over this comes from where its neighbourhoods lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.policies.base import Policy, best_of, commits, reaches, surest
from leapjax.policies.localleap import anchor_distances
from leapjax.policies.parameters import RADIUS, RELAXED_THRESHOLD, THRESHOLD
from leapjax.types import ANCHOR, PROPAGATED, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits.

    Kinds are anchor, propagated (in a drawn neighbourhood), and top1 for a most confident one that
    is neither.
    """
    numbers, confidence = info.parameters, proposal.confidence
    anchor = masked & reaches(confidence, numbers["threshold"])
    count = jnp.sum(anchor, axis=1, dtype=jnp.int32)
    centre = best_of(proposal.uniform, masked, count)  # the anchors' own places may be drawn
    distance = jnp.minimum(*anchor_distances(centre))
    # Clipped to the window: without a centre the distance is large, not infinite.
    near = distance <= jnp.minimum(numbers["radius"], jnp.int32(anchor.shape[1]))[:, None]
    propagated = masked & near & (confidence >= numbers["relaxed_threshold"][:, None])
    kind = jnp.where(anchor, ANCHOR, jnp.where(propagated, PROPAGATED, TOP1))
    return commits(anchor | propagated | surest(confidence, masked), kind)


POLICY = Policy(
    name="placebo",
    source="a control of our own for arXiv 2510.07081",
    commit=commit,
    parameters=(THRESHOLD, RELAXED_THRESHOLD, RADIUS),
    needs=frozenset({"uniform"}),
    label="placebo (0.9, 0.75, radius 4)",
)
