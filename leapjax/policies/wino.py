"""Draft generously, look again with the drafted token hidden, and take doubtful drafts back.

Source: WINO, arXiv 2507.18578, "wide in, narrow out"; checked against the authors'
LLaDA/decoding.py (`decoding_wino`), whose thresholds 0.6 and 0.9 are ours. In each pass:

- drafts: open positions with confidence above `threshold`, at most clip(0.7 M, 5, 20) of them
  where M is the number of the block's masks, the surest first; the surest if there is none;
- a shadow of the block, all masks, sees the row but not the token at its own position. A
  token drafted in an earlier pass is taken back if the shadow gives it less than
  `remask_threshold`; fewer are taken back than the last pass drafted (30 before the first), the
  least probable first, and none unless this pass drafts more than one.

So the masks of a block shrink by at least one a pass on the whole: after n passes at least n of
its positions are decided, and W passes are enough. Both comparisons are strict, as there. It needs
the whole row in each pass, so no KV cache, and early stop is off. The authors have no model
whose output at i - 1 predicts i; there the shadow stands at i - 1 and doesn't see i.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from leapjax.policies.base import Policy, best_of, surest
from leapjax.types import ANCHOR, TOP1, Decision

_MOST_AT_FIRST = 30


def memory(w, v):
    """How many the last pass drafted; 0 before the first."""
    return {"drafted": ((), np.int32)}


def commit(proposal, masked, info):
    """Choose the positions that this pass commits, and those that it takes back.

    Args:
      proposal: `.confidence` (B, W) float32 in [0, 1]; `.recheck` (B, W) float32, what the
        shadow gives to the token that stands there.
      masked: (B, W) bool, the active block's open positions.
      info: `.options.threshold`, `.options.own["remask_threshold"]` (B,) float32; `.decided`,
        `.memory`.

    Returns:
      A Decision with remask and memory; kind anchor above the threshold, else top1.
    """
    confidence, options = proposal.confidence, info.options
    # Below the clip, int(0.7 M) in float64 is this quotient.
    limit = jnp.clip(jnp.sum(masked, axis=1, dtype=jnp.int32) * 7 // 10, 5, 20)
    sure = masked & (confidence > options.threshold[:, None])
    drafts = best_of(confidence, sure, limit)
    none = ~jnp.any(drafts, axis=1)[:, None]
    chosen = jnp.where(none, surest(confidence, masked), drafts)
    drafted = jnp.sum(chosen, axis=1, dtype=jnp.int32)
    before = info.memory["drafted"]
    before = jnp.where(before == 0, _MOST_AT_FIRST, before)
    doubtful = info.decided & (proposal.recheck < options.own["remask_threshold"][:, None])
    # With fewer doubtful ones than that, all of them go.
    remask = best_of(-proposal.recheck, doubtful, before - 1) & (drafted > 1)[:, None]
    kind = jnp.where(drafts, ANCHOR, TOP1).astype(jnp.int8)
    return Decision(chosen, kind, {"drafted": drafted}, remask)


POLICY = Policy(
    name="wino",
    source="WINO, arXiv 2507.18578",
    defaults={"threshold": 0.6, "remask_threshold": 0.9},
    commit=commit,
    needs=frozenset({"recheck"}),
    memory=memory,
    remasks=True,
)
