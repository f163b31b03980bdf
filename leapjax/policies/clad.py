"""Commit runs of confident positions, but only one of two that attend to each other most.

Source: CLAD, arXiv 2605.29607; checked against the authors' llada/generate_clad.py and
dream/model/clad_utils.py. Candidates are open positions of at least `threshold`, and the most
confident one. Maximal runs of neighbouring candidates are clusters. a[j, i] is the attention of j
to i (softmax, mean over query heads and the last four layers), and r = max(a, a transposed). The
score of two clusters is the largest mean of r between a position of one and all positions of the
other, in either direction. Two clusters conflict if each is the other's best partner; if there are
only two clusters, their score must also be at least 1.2 / M. Of two clusters in conflict, the
longer one commits, and on a tie the left one. All other clusters commit.

`span` sets M: the length of the active block (the authors' LLaDA code) or of the row (their Dream
code). With three clusters, the authors compare a pair's score with the mean scores of its clusters;
best partners are never below them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.policies.base import Parameter, Policy, commits, reaches, surest
from leapjax.policies.parameters import THRESHOLD
from leapjax.types import ANCHOR, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal

_FACTOR = np.float32(1.2)


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits; kind anchor at the threshold, else top1."""
    columns, w = info.columns, masked.shape[1]
    sure = masked & reaches(proposal.confidence, info.parameters["threshold"])
    candidates = sure | surest(proposal.confidence, masked)
    own = jnp.take_along_axis(proposal.attention.rows, columns[:, None, :], axis=2)
    related = jnp.where(jnp.eye(w, dtype=bool)[None], 0, jnp.maximum(own, own.transpose(0, 2, 1)))

    # K clusters, numbered from the left: at most every second position begins one.
    before = jnp.pad(candidates[:, :-1], ((0, 0), (1, 0)))
    number = jnp.cumsum(candidates & ~before, axis=1, dtype=jnp.int32) - 1
    cluster = jnp.arange((w + 1) // 2, dtype=jnp.int32)
    member = candidates[:, :, None] & (number[:, :, None] == cluster[None, None, :])  # (B, W, K)
    size = jnp.sum(member, axis=1, dtype=jnp.int32)
    there = size > 0

    total = jnp.einsum(
        "bij,bjk->bik", related, member.astype(jnp.float32), precision=lax.Precision.HIGHEST
    )
    mean = total / jnp.maximum(size, 1).astype(jnp.float32)[:, None, :]
    one_way = jnp.max(jnp.where(member[:, :, :, None], mean[:, :, None, :], -1), axis=1)
    score = jnp.maximum(one_way, one_way.transpose(0, 2, 1))  # (B, K, K)
    pairs = there[:, :, None] & there[:, None, :] & (cluster[:, None] != cluster[None, :])[None]
    score = jnp.where(pairs, score, -1)

    partner = jnp.argmax(score, axis=2).astype(jnp.int32)
    mutual = jnp.take_along_axis(partner, partner, axis=1) == cluster[None, :]
    if info.parameters["span"] == "block":
        span = columns[:, -1] + 1 - info.block
    else:
        span = info.end - info.first
    least = _FACTOR / span.astype(jnp.float32)[:, None]
    many = jnp.sum(there, axis=1, dtype=jnp.int32)[:, None] > 2
    conflict = mutual & (many | (jnp.max(score, axis=2) >= least))
    other = jnp.take_along_axis(size, partner, axis=1)
    wins = (size > other) | ((size == other) & (cluster[None, :] < partner))
    kept = jnp.any(member & (~conflict | wins)[:, None, :], axis=2)
    return commits(kept, jnp.where(sure, ANCHOR, TOP1))


POLICY = Policy(
    name="clad",
    source="CLAD, arXiv 2605.29607",
    commit=commit,
    parameters=(
        THRESHOLD.with_default(0.7),
        Parameter(
            "span",
            str,
            "M in the score 1.2 / M from which two runs conflict: length of block or row",
            "block",
            choices=("block", "sequence"),
            traced=False,
            of_model=lambda model: "sequence" if model.family == "dream" else None,
        ),
    ),
    needs=frozenset({"attention"}),
    label="CLAD (0.7)",
)
