"""Commit the lowest-entropy positions while their entropies without the largest stay bounded.

Source: EB-Sampler, arXiv 2505.24857: with entropies in ascending order, the largest k with
H_1 + ... + H_k - max(H_1 ... H_k) <= gamma. The left side bounds the mutual information of the k
tokens. No code by the authors was found; the rule was checked against the copies in PC-Sampler
(src/generate.py) and in Diffusers (`EntropyBoundScheduler`). The default of 0.1 is that of
Diffusers; the paper sweeps about 0.001 to 0.1. The error proxy is the entropy, as in the copies.

SDAR's rule, whose sum includes the largest entropy, is `entropy_bounded`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.policies.base import Parameter, Policy, commits, rank
from leapjax.types import ANCHOR

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits; the lowest entropy always passes."""
    place = rank(-proposal.entropy, masked)
    ordered = jnp.sort(jnp.where(masked, proposal.entropy, jnp.inf), axis=1)
    # The largest of the first k is the k-th: what remains is the sum of those before it.
    finite = jnp.where(jnp.isinf(ordered), 0.0, ordered)
    before = jnp.cumsum(finite, axis=1) - finite
    before = jnp.take_along_axis(before, place, axis=1)  # back to the window's order
    bound = info.parameters["entropy_bound"][:, None]
    return commits(masked & ((before <= bound) | (place == 0)), ANCHOR)


POLICY = Policy(
    name="entropy_bound",
    source="EB-Sampler, arXiv 2505.24857",
    commit=commit,
    parameters=(
        Parameter(
            "entropy_bound",
            float,
            "upper bound on the sum of a pass's entropies without the largest, in nats",
            0.1,
            low=0,
        ),
    ),
    needs=frozenset({"entropy"}),
)
