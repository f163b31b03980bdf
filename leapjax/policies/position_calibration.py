"""Fixed schedule: probable, informative tokens first, weighted towards early positions.

Source: PC-Sampler, arXiv 2508.13021: rank position i of the block by exp(-lambda i) times
min(-c log q(token), alpha), with q the token's frequency in a corpus. Checked against the
authors' `pc_sampler_function` (src/generate.py). Their runs use lambda 0.25 and alpha 10,
our defaults. It changes the order, not the number, of what commits.

`lm.with_token_counts` sets q from the counts of your corpus. Without it, all tokens count as
equally frequent: -log q is the constant log V, and confidence is weighted only by position (and
capped if V exceeds exp(alpha)). The prompt is too small to serve as a corpus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from leapjax.errors import UserError
from leapjax.policies.base import Parameter, Policy, best_first
from leapjax.policies.parameters import SCHEDULED

if TYPE_CHECKING:
    from jaxtyping import Array, Float32, Real
    from numpy.typing import ArrayLike

    from leapjax.policies.base import Pass
    from leapjax.types import Proposal


def checked_counts(counts: ArrayLike, vocab_size: int) -> Real[np.ndarray, " {vocab_size}"]:
    """Counts of tokens as an array: whole numbers from 0, one for each id of the vocabulary."""
    counts = np.asarray(counts)
    numbers = np.issubdtype(counts.dtype, np.number)
    if counts.shape != (vocab_size,) or not numbers or not (counts >= 0).all():
        raise UserError(
            f"counts: expected {vocab_size} numbers, one for each token id, none "
            f"below 0; got shape {counts.shape}"
        )
    return counts


def log_frequencies(counts: ArrayLike) -> Float32[np.ndarray, " V"]:
    """Log of each token's share of a corpus, as the authors estimate it.

    >>> np.exp(log_frequencies([3, 1, 0])).round(2).tolist()  # an unseen token counts as once
    [0.75, 0.25, 0.25]
    """
    counts = np.asarray(counts, np.float64)
    share = np.maximum(counts, 1.0) / max(counts.sum(), 1.0)
    return np.log(share + 1e-9).astype(np.float32)


def score(proposal: Proposal, info: Pass) -> Float32[Array, "B W"]:
    """Capped information content, weighted by the position in the block."""
    numbers = info.parameters
    place = jnp.maximum(info.columns - info.block[:, None], 0).astype(jnp.float32)
    content = jnp.minimum(proposal.confidence * proposal.surprise, numbers["surprise_cap"][:, None])
    return jnp.exp(-numbers["position_decay"][:, None] * place) * content


POLICY = Policy(
    name="position_calibration",
    source="PC-Sampler, arXiv 2508.13021",
    commit=best_first(score),
    parameters=(
        *SCHEDULED,
        Parameter(
            "position_decay", float, "how fast a block's later positions lose weight", 0.25, low=0
        ),
        Parameter(
            "surprise_cap", float, "maximum weight of a rare token, nats", 10.0, low=0, above=True
        ),
    ),
    needs=frozenset({"surprise"}),
    label="position calibration (0.25, 10)",
)
