"""Fixed schedule: confidence weighted by how many tokens around a position are known.

Source: d2Cache, arXiv 2509.23094, certainty prior guided decoding: rank by c times the Gaussian
density of known tokens around the position (sigma 10). Checked against the authors'
`certainty_density` (src/utils/common.py): everything left of the canvas counts as known,
everything right of it only if its last position is known. Their kernel is cut at some canvas
lengths, ours where it vanishes in float32; for canvases much longer than sigma the results are
the same. Prompt and earlier blocks are known, later blocks are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.policies.base import Parameter, Policy, best_first
from leapjax.policies.parameters import SCHEDULED

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32, Int32

    from leapjax.policies.base import Pass
    from leapjax.types import Proposal

# Where the kernel ends: 5 sigma and more for every sigma that is allowed.
REACH = 512


def certainty_density(
    open_: Bool[Array, "B T"],
    columns: Int32[Array, "B W"],
    end: Int32[Array, " B"],
    sigma: Float32[Array, " B"],
) -> Float32[Array, "B W"]:
    """The share of known tokens around some columns of each row, weighted by a Gaussian; in [0, 1].

    `open_` positions are not known; `end` is the column behind the row's last: what lies there is
    not read. `sigma` is in positions.
    """
    t = open_.shape[1]

    def kernel(distance):  # (B, ...) float32
        scale = sigma.reshape(sigma.shape + (1,) * (distance.ndim - 1))
        return jnp.exp(-0.5 * jnp.square(distance / scale))

    steps = jnp.arange(REACH, dtype=jnp.float32)
    weights = kernel(jnp.broadcast_to(steps, (open_.shape[0], REACH)))
    tails = jnp.cumsum(weights[:, ::-1], axis=1)[:, ::-1]  # everything at least so far away
    total = 2 * tails[:, :1] - 1

    def beyond(distance):
        tail = jnp.take_along_axis(tails, jnp.clip(distance, 0, REACH - 1), axis=1)
        return jnp.where(distance < REACH, tail, 0.0)

    column = jnp.arange(t, dtype=jnp.int32)[None, :]
    unknown = open_ | (column >= end[:, None])
    near = kernel((columns[:, :, None] - column[:, None, :]).astype(jnp.float32))  # (B, W, T)
    known = jnp.sum(jnp.where(unknown[:, None, :], 0.0, near), axis=-1)
    last_open = jnp.any(open_ & (column == end[:, None] - 1), axis=1)[:, None]
    right = jnp.where(last_open, 0.0, beyond(end[:, None] - columns))
    return (known + beyond(columns + 1) + right) / total


def score(proposal: Proposal, info: Pass) -> Float32[Array, "B W"]:
    """Confidence times the density of known tokens."""
    return proposal.confidence * certainty_density(
        info.open, info.columns, info.end, info.parameters["sigma"]
    )


SIGMA = Parameter(
    "sigma", float, "range of a known token's effect, in positions", 10.0, low=0.1, high=100
)
POLICY = Policy(
    name="certainty_prior",
    source="d2Cache, arXiv 2509.23094",
    commit=best_first(score),
    parameters=(*SCHEDULED, SIGMA),
    label="certainty prior (sigma 10)",
)
