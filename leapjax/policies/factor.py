"""Commit the n most confident positions while n + 1 times the n-th doubt stays below a factor.

Source: arXiv 2505.22618 (Fast-dLLM), factor-based parallel decoding: the largest n with
(n + 1)(1 - c_n) < f, where c_n is the n-th largest confidence; Theorem 1 there says when
parallel and sequential greedy decoding agree. If even the most confident fails, only it commits.

The authors' code (llada/generate.py, `get_transfer_index_dynamic`) differs in two ways that
look unintended and are not copied: equality passes, and a last candidate that fails is
taken if all before it passed. Its default factor is 1.
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
    doubt = 1 - proposal.confidence
    # Both factors grow with n, so the positions that pass are a prefix of the order.
    bound = (place + 2).astype(jnp.float32) * doubt
    sure = masked & (bound < info.parameters["factor"][:, None])
    return commits(sure | (masked & (place == 0)), jnp.where(sure, ANCHOR, TOP1))


POLICY = Policy(
    name="factor",
    source="arXiv 2505.22618, factor",
    commit=commit,
    parameters=(
        Parameter(
            "factor", float, "(n + 1) times the n-th doubt stays below it", 1.0, low=0, above=True
        ),
    ),
)
