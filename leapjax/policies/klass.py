"""Commit confident positions that stopped changing: low KL divergence over the last passes.

Source: KLASS, arXiv 2511.05664: a position is ready once its confidence is above a threshold and
KL(p_t || p_t-1) is below another in each of the last `kl_history` passes. All ready positions
commit, or else the most confident one. Checked against the authors' src/model/llada_klass.py,
whose defaults (0.9, 0.01, 2) are also ours; per task they use confidence 0.6 to 0.9 and KL 0.01
to 0.015. As there, both comparisons are strict, and probabilities are clamped to at least 1e-12.

Differences: the authors keep distributions of the whole canvas, so a new block may use passes
over the previous one; here a block's history starts with the block, one pass later. If none is
ready, they commit as many as a schedule over `steps` says (one in their runs), here always one.
With a temperature, their distribution contains the noise; ours does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from leapjax.policies.base import Parameter, Policy, commits, surest
from leapjax.policies.parameters import THRESHOLD
from leapjax.types import ANCHOR, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Memory, Pass
    from leapjax.types import Decision, Proposal

_FLOOR = np.float32(np.log(1e-12))


def memory(w: int, v: int) -> Memory:
    """The last distribution, how long each position has been steady, and the passes seen."""
    return {"log_probs": ((w, v), np.float32), "steady": ((w,), np.int32), "passes": ((), np.int32)}


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits; kind anchor where ready, else top1."""
    numbers, before = info.parameters, info.memory
    change = jnp.maximum(proposal.log_probs, _FLOOR) - jnp.maximum(before["log_probs"], _FLOOR)
    divergence = jnp.sum(jnp.exp(proposal.log_probs) * change, axis=-1)  # (B, W)
    still = divergence < numbers["kl_threshold"][:, None]
    steady = jnp.where(still & (before["passes"] > 0)[:, None], before["steady"] + 1, 0)
    ready = masked & (steady >= numbers["kl_history"][:, None])
    ready = ready & (proposal.confidence > numbers["threshold"][:, None])
    chosen = jnp.where(jnp.any(ready, axis=1)[:, None], ready, surest(proposal.confidence, masked))
    after = {
        "log_probs": proposal.log_probs,
        "steady": steady.astype(jnp.int32),
        "passes": before["passes"] + 1,
    }
    return commits(chosen, jnp.where(ready, ANCHOR, TOP1), after)


POLICY = Policy(
    name="klass",
    source="KLASS, arXiv 2511.05664",
    commit=commit,
    parameters=(
        THRESHOLD,
        Parameter(
            "kl_threshold",
            float,
            "a position is steady if its divergence from the last pass is below it",
            0.01,
            low=0,
        ),
        Parameter("kl_history", int, "consecutive passes it has to be steady for", 2, low=1),
    ),
    label="KLASS (0.9, 0.01, 2 passes)",
    needs=frozenset({"log_probs"}),
    memory=memory,
)
