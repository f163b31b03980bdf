"""LocalLeap's two thresholds, with a measured reach of doubts instead of a radius.

Source: ours, after arXiv 2510.07081; docs/own-policy.md derives it on Markov chains. Anchors
(`threshold`) commit. A position of at least `relaxed_threshold` commits if its doubt d = 1 - c plus
the doubts of more confident open positions that reach it sum to less than `doubt_bound`.

Within a run of open positions, doubts count in full. Across n decided positions, which would stop
them in a Markov chain, a share counts. It is measured: a commit of doubt d that moves the
probability of a position's token by m has influence m / d on it. The share is the mean influence of
the block's commits on the nearest open positions, weighted by doubt; at first, `influence` ** n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.policies.base import Parameter, Policy, commits, rank, reaches
from leapjax.policies.parameters import RELAXED_THRESHOLD, THRESHOLD
from leapjax.types import ANCHOR, PROPAGATED, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int32

    from leapjax.policies.base import Memory, Pass
    from leapjax.types import Decision, Proposal

PRIOR = np.float32(0.5)  # what `influence` weighs against measurements, in squared doubts


def memory(w: int, v: int) -> Memory:
    """The last pass, and sums of doubt x movement and doubt x doubt for each number between."""
    last = {"token": ((w,), np.int32), "confidence": ((w,), np.float32), "masked": ((w,), np.bool_)}
    return last | {"moved": ((w,), np.float32), "doubt": ((w,), np.float32)}


def decided_between(masked: Bool[Array, "B W"]) -> Int32[Array, "B W W"]:
    """The number of decided positions strictly between two positions.

    >>> decided_between(jnp.array([[True, False, False, True]]))[0, 0].tolist()
    [0, 0, 1, 2]
    """
    decided = (~masked).astype(jnp.int32)
    place = 2 * jnp.cumsum(decided, axis=1) - decided  # a position itself counts half
    return jnp.abs(place[:, :, None] - place[:, None, :]) // 2


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits."""
    numbers, last, confidence = info.parameters, info.memory, proposal.confidence
    w, between = masked.shape[1], decided_between(masked)
    number = jnp.arange(w, dtype=jnp.int32)[None, :, None]
    # An open position (axis 1) has seen the last pass's commits (axis 2), the nearest ones first.
    fresh, past = (last["masked"] & ~masked)[:, None, :], (1 - last["confidence"])[:, None, :]
    nearest = jnp.min(jnp.where(fresh, between, w), axis=2)
    given = jnp.sum(jnp.where(fresh & (between == nearest[:, :, None]), past, 0.0), axis=2)
    same = proposal.token == last["token"]  # if not, its probability may have fallen to 0
    moved = jnp.where(same, jnp.abs(confidence - last["confidence"]), last["confidence"])
    own = jnp.where(masked[:, None, :] & (nearest[:, None, :] == number), past, 0.0)
    moved = last["moved"] + jnp.sum(own * moved[:, None, :], axis=2)
    given = last["doubt"] + jnp.sum(own * given[:, None, :], axis=2)
    prior = jnp.where(number[..., 0] == 0, 1.0, numbers["influence"][:, None])
    share = (moved + PRIOR * jnp.cumprod(prior, axis=1)) / (given + PRIOR)
    share = lax.cummax(jnp.minimum(share, 1.0), axis=1, reverse=True).at[:, 0].set(1.0)
    place, doubt = rank(confidence, masked), (1 - confidence)[:, None, :]
    surer = masked[:, None, :] & (place[:, None, :] <= place[:, :, None])  # or itself
    reach = jnp.take_along_axis(share, between.reshape(-1, w * w), axis=1).reshape(between.shape)
    total = jnp.sum(jnp.where(surer, reach * doubt, 0.0), axis=2)
    anchor = masked & reaches(confidence, numbers["threshold"])
    fits = (confidence >= numbers["relaxed_threshold"][:, None]) & masked
    relaxed = fits & (total < numbers["doubt_bound"][:, None])
    kind = jnp.where(anchor, ANCHOR, jnp.where(relaxed, PROPAGATED, TOP1))
    after = {"token": proposal.token, "confidence": confidence, "masked": masked}
    chosen = anchor | relaxed | (masked & (place == 0))
    return commits(chosen, kind, after | {"moved": moved, "doubt": given})


_BOUND = "bound on a relaxed commit's own doubt plus the other doubts that reach it"
POLICY = Policy(
    name="influence",
    source="ours, after arXiv 2510.07081",
    commit=commit,
    parameters=(
        THRESHOLD,
        RELAXED_THRESHOLD,
        Parameter("doubt_bound", float, _BOUND, 0.75, low=0, above=True),
        Parameter("influence", float, "share of doubt past a decided token", 0.5, low=0, high=1),
    ),
    memory=memory,
    main=("threshold", "doubt_bound"),
)
