"""Commit confident positions, dependents of confident decided ones, and independent others.

Source: DAWN, arXiv 2602.06953; checked against the authors' llada/gdllm_utils.py. The attention
a[j, i] of j to i is a softmax, averaged over query heads and the last four layers. Position j
depends on i if a[j, i] >= `tau_edge`. Columns whose mean is above `tau_sink` are sinks, on which
nothing depends. The columns' average mean is one over the row's length, so rows of less than a few
hundred tokens need a higher `tau_sink` (about 3 / length). In each pass:

- high: open positions of at least 0.9, which is fixed in the authors' code;
- anchors: decided positions of the prompt, earlier blocks or this block whose top-1 probability is
  now at least 0.9, whichever token is there;
- induced: open positions of at least `tau_induce` that depend on an anchor;
- candidates: other open positions of at least `tau_low` that depend on no position that is high and
  induced. Two conflict if one depends on the other; greedily, the most confident are kept;
- all of these commit; if there are none, the most confident open position does.

The authors' greedy loop continues after its candidates are used up and then writes to the first
token of the prompt, and in batches one row changes another. Neither is in the published rule, so
both are left out. Defaults are theirs for LLaDA-8B-Instruct on GSM8K.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from leapjax.policies.base import Parameter, Policy, commits, reaches, surest
from leapjax.policies.independent import independent_set
from leapjax.types import ANCHOR, PROPAGATED, TOP1

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

    from leapjax.policies.base import Pass
    from leapjax.types import Decision, Proposal

HIGH = np.float32(0.9)


def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
    """Choose the positions that this pass commits.

    Kinds are anchor (high), propagated (induced, independent), and top1.
    """
    numbers, confidence, columns = info.parameters, proposal.confidence, info.columns
    rows, received = proposal.attention  # (B, W, T), (B, T)
    column = jnp.arange(rows.shape[2], dtype=jnp.int32)[None, :]
    length = (info.end - info.first).astype(jnp.float32)
    sink = received / length[:, None] > numbers["tau_sink"][:, None]
    gone = sink[:, None, :] | (columns[:, :, None] == column[:, None, :])
    depends = jnp.where(gone, 0, rows) >= numbers["tau_edge"][:, None, None]

    high = masked & (confidence >= HIGH)
    # Both the window and the active block end with the same column.
    anchors = ~info.open & (column <= columns[:, -1:]) & (proposal.sure >= HIGH)
    induced = masked & reaches(confidence, numbers["tau_induce"])
    induced = induced & jnp.any(depends & anchors[:, None, :], axis=2)
    within = jnp.take_along_axis(depends, columns[:, None, :], axis=2)  # (B, W, W)
    barred = jnp.any(within & (high & induced)[:, None, :], axis=2)
    candidates = masked & reaches(confidence, numbers["tau_low"]) & ~(high | induced | barred)
    conflicts = within | within.transpose(0, 2, 1)
    propagated = induced | independent_set(confidence, candidates, conflicts)

    chosen = high | propagated
    none = ~jnp.any(chosen, axis=1)[:, None]
    kind = jnp.where(high, ANCHOR, jnp.where(propagated, PROPAGATED, TOP1))
    return commits(chosen | (none & surest(confidence, masked)), kind)


def _threshold(name: str, help_text: str, default: float, high: float | None = 1) -> Parameter:
    return Parameter(name, float, help_text, default, low=0, high=high)


POLICY = Policy(
    name="dawn",
    source="DAWN, arXiv 2602.06953",
    commit=commit,
    parameters=(
        _threshold("tau_sink", "mean attention above which a position is a sink", 0.01),
        _threshold("tau_edge", "attention at which a position depends on another", 0.07, None),
        _threshold("tau_induce", "confidence a position needs if it depends on an anchor", 0.7),
        _threshold("tau_low", "confidence that an independent position needs", 0.75),
    ),
    needs=frozenset({"attention", "received", "sure"}),
    main=("tau_low", "tau_induce"),
    label="DAWN (0.01, 0.07, 0.7, 0.75)",
)
