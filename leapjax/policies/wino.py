"""Draft generously, verify each draft with its token hidden, and take doubtful drafts back.

Source: WINO, arXiv 2507.18578, "wide in, narrow out"; checked against the authors'
LLaDA/decoding.py (`decoding_wino`), whose thresholds 0.6 and 0.9 are also ours. In each pass:

- drafts: open positions with confidence above `threshold`, the most confident first, at most
  clip(0.7 M, 5, 20) for M masks in the block. If there are none, the most confident position;
- a shadow of the block, all masks, sees the row but not the token at its own position. A
  token drafted in an earlier pass is taken back if the shadow gives it less than
  `remask_threshold`. Fewer are taken back than the last pass drafted (30 before the first), the
  least probable first, and none unless this pass drafts more than one.

So a block loses on balance at least one mask per pass: after n passes, at least n of its positions
are decided, and W passes are enough. Both comparisons are strict, as there. It needs the whole row
in each pass, so it has no KV cache, and early stop is off. The authors have no model whose output
at i - 1 predicts i; here, for such models, the shadow is at i - 1 and doesn't see i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from leapjax.policies.base import Parameter, Policy, best_of, commits, surest
from leapjax.policies.parameters import THRESHOLD
from leapjax.types import ANCHOR, REOPEN, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Memory, Pass
    from leapjax.types import Decision, Proposal

_MOST_AT_FIRST = 30


def memory(w: int, v: int) -> Memory:
    """The number of drafts in the last pass; 0 before the first."""
    return {"drafted": ((), np.int32)}


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits, and those that it takes back.

    The kind is anchor above the threshold, else top1. `recheck` is what the shadow gives to the
    token that stands there.
    """
    numbers, confidence = info.parameters, proposal.confidence
    # Below the clip, int(0.7 M) in float64 is this quotient.
    limit = jnp.clip(jnp.sum(masked, axis=1, dtype=jnp.int32) * 7 // 10, 5, 20)
    sure = masked & (confidence > numbers["threshold"][:, None])
    drafts = best_of(confidence, sure, limit)
    none = ~jnp.any(drafts, axis=1)[:, None]
    chosen = jnp.where(none, surest(confidence, masked), drafts)
    drafted = jnp.sum(chosen, axis=1, dtype=jnp.int32)
    before = info.memory["drafted"]
    before = jnp.where(before == 0, _MOST_AT_FIRST, before)
    doubtful = info.decided & (proposal.recheck < numbers["remask_threshold"][:, None])
    # With fewer doubtful ones than that, all of them go.
    back = best_of(-proposal.recheck, doubtful, before - 1) & (drafted > 1)[:, None]
    decision = commits(chosen, jnp.where(drafts, ANCHOR, TOP1), {"drafted": drafted})
    return decision._replace(action=jnp.where(back, jnp.int8(REOPEN), decision.action))


POLICY = Policy(
    name="wino",
    source="WINO, arXiv 2507.18578",
    commit=commit,
    parameters=(
        THRESHOLD.with_default(0.6),
        Parameter(
            "remask_threshold",
            float,
            "confidence below which a draft is taken back",
            0.9,
            low=0,
            high=1,
        ),
    ),
    needs=frozenset({"recheck"}),
    memory=memory,
    reopens=True,
    label="WINO (0.6, 0.9)",
)
