"""DAWN: its rule in plain Python, and what the authors' code commits."""

from pathlib import Path

import jax
import numpy as np

from leapjax.policies import POLICIES, Pass
from leapjax.types import COMMIT, Attention, Proposal
from tests.policies.batches import (
    FIRST,
    LEFT,
    WIDTH,
    attention_of,
    check_rule,
    open_positions,
    reaches,
    sure_of,
    surest,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SIDE = 40  # the cases are padded to it


def rule(row):
    """The steps of the published rule, one position at a time."""
    own, confidence, masks = row["own"], row["confidence"], open_positions(row)
    a, sure = attention_of(row), sure_of(row)
    columns, length = range(FIRST, LEFT + WIDTH), LEFT + WIDTH - FIRST
    mean = {i: sum(a[j][i] for j in columns) / length for i in columns}

    def depends(j, i):
        look = 0 if i == j or mean[i] > np.float32(own["tau_sink"]) else a[j][i]
        return look >= np.float32(own["tau_edge"])

    column = {i: LEFT + i for i in range(WIDTH)}
    decided = set(columns) - {column[i] for i in masks}
    anchors = [i for i in decided if sure[i] >= np.float32(0.9)]
    high = {i for i in masks if confidence[i] >= np.float32(0.9)}
    induced = {
        j
        for j in masks
        if reaches(confidence[j], own["tau_induce"]) and any(depends(column[j], i) for i in anchors)
    }
    left = [
        j
        for j in masks
        if reaches(confidence[j], own["tau_low"])
        and j not in high | induced
        and not any(depends(column[j], column[i]) for i in high & induced)
    ]
    independent = set()
    while left:
        best = max(left, key=lambda i: confidence[i])  # the first of equals
        independent.add(best)
        left = [
            i
            for i in left
            if i != best
            and not depends(column[i], column[best])
            and not depends(column[best], column[i])
        ]
    out = dict.fromkeys(induced | independent, "propagated") | dict.fromkeys(high, "anchor")
    return out or dict.fromkeys([surest(row)] if masks else [], "top1")


def test_commit_is_the_published_rule():
    check_rule("dawn", rule)


def test_commits_are_the_authors():
    """Rows lie so that all active blocks end with one column: the first ones are pads."""
    with np.load(GOLDEN / "dawn.npz") as z:
        z = dict(z)
    rows, t = len(z["length"]), 2 * SIDE
    first = SIDE - z["prompt_length"] - (z["block"] + 1) * z["block_length"]
    assert first.min() >= 0
    confidence, masked, want = (np.zeros((rows, t), x) for x in (np.float32, bool, bool))
    own, attention = np.zeros((rows, t), bool), np.zeros((rows, t, t), np.float32)
    for b, (n, at) in enumerate(zip(z["length"], first, strict=True)):
        here = slice(at, at + n)
        confidence[b, here], masked[b, here] = z["confidence"][b, :n], z["masked"][b, :n]
        own[b, here], want[b, here] = z["open"][b, :n], z["commit"][b, :n]
        attention[b, here, here] = z["attention"][b, :n, :n]
    names = ("tau_sink", "tau_edge", "tau_induce", "tau_low")
    info = Pass(
        quota=None,
        parameters=dict(zip(names, z["params"].T.astype(np.float32), strict=True)),
        columns=np.broadcast_to(np.arange(SIDE, dtype=np.int32), (rows, SIDE)),
        open=masked,
        first=first.astype(np.int32),
        end=(first + z["length"]).astype(np.int32),
    )
    proposal = Proposal(
        token=None,
        confidence=confidence[:, :SIDE],
        attention=Attention(attention[:, :SIDE], attention.sum(axis=1)),
        sure=confidence,
    )
    decision = jax.jit(POLICIES["dawn"].commit)(proposal, own[:, :SIDE], info)
    assert not want[:, SIDE:].any() and (z["commit"] != z["commit_raw"]).any()
    np.testing.assert_array_equal(decision.action == COMMIT, want[:, :SIDE])
