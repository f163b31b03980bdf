"""Commit the n most confident positions while a bound on their joint probability beats any rival's.

Source: Fast-dLLM++, arXiv 2606.02955, the Fréchet profile. With the n largest confidences
c_1 >= ... >= c_n, L_n = max(0, c_1 + ... + c_n - (n - 1)) is a lower bound on the joint
probability of the n tokens, for any dependence, and U_n = 1 - c_n an upper bound on that of any
other n tokens. The largest n with L_n - U_n > margin commits, or else only the most confident.
Checked against the authors' v1/llada/generate.py (`get_transfer_index_frechet_profile`).

With doubts d = 1 - c, which float32 holds exactly for c >= 0.5, the condition is
d_1 + ... + d_n + d_n < 1 - margin. If all doubts are equal, this is `factor` at 1 - margin;
otherwise it commits at least the positions that `factor` commits.
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
    """Choose the positions that this pass commits; kind anchor where the bound holds, else top1."""
    place = rank(proposal.confidence, masked)  # n - 1
    doubt = jnp.sort(jnp.where(masked, 1 - proposal.confidence, 1.0), axis=1)
    # Sorted, so each term is at least the mean of those before it: rounding can't undo the growth,
    # and the positions that pass are a prefix of the order.
    bound = jnp.take_along_axis(jnp.cumsum(doubt, axis=1) + doubt, place, axis=1)
    sure = masked & (bound < 1 - info.parameters["margin"][:, None])
    return commits(sure | (masked & (place == 0)), jnp.where(sure, ANCHOR, TOP1))


POLICY = Policy(
    name="frechet",
    source="Fast-dLLM++, arXiv 2606.02955",
    commit=commit,
    parameters=(
        Parameter(
            "margin",
            float,
            "how far the bound on a pass's joint probability must exceed any rival's",
            0.25,
            low=0,
            high=1,
        ),
    ),
    label="Frechet profile (0.25)",
)
