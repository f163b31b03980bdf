"""The Fréchet profile (Fast-dLLM++): its formulas, the authors' answers, and `factor` beside it."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax.policies import POLICIES, Pass
from leapjax.types import COMMIT, Proposal
from tests.policies.batches import check_rule, open_positions

GOLDEN = Path(__file__).parents[1] / "golden"
SIDE = 12


def rule(row):
    """The largest n whose L_n exceeds U_n by more than the margin, the surest in any case."""
    order = sorted(open_positions(row), key=lambda i: -row["confidence"][i])  # stable
    best = 0
    for n in range(1, len(order) + 1):
        taken = [row["confidence"][i] for i in order[:n]]
        least, rival = max(0, sum(taken) - (n - 1)), 1 - taken[-1]
        if least - rival > row["own"]["margin"]:
            best = n
    if best == 0:
        return {i: "top1" for i in order[:1]}
    return {i: "anchor" for i in order[:best]}


def commits(name, confidence, masked, **numbers):
    info = Pass(quota=None, parameters=numbers)
    decision = POLICIES[name].commit(Proposal(token=None, confidence=confidence), masked, info)
    return np.asarray(decision.action) == COMMIT


def test_commit_is_the_published_rule():
    check_rule("frechet", rule)


def test_commits_are_the_authors():
    with np.load(GOLDEN / "frechet.npz") as z:
        logits, masked, want = z["logits"].astype(np.float32), z["open"], z["commit"]
        margin = z["margin"].astype(np.float32)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    confidence = weights.max(-1) / weights.sum(-1)
    np.testing.assert_array_equal(commits("frechet", confidence, masked, margin=margin), want)


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 64), min_size=SIDE, max_size=SIDE),
    st.lists(st.booleans(), min_size=SIDE, max_size=SIDE),
    st.integers(0, 63),
)
def test_it_commits_at_least_what_factor_does_and_the_same_at_equal_confidences(
    confidence, masked, margin
):
    confidence = np.array([confidence, confidence[:1] * SIDE], np.float32) / 64  # sums are exact
    masked, margin = np.array([masked] * 2), np.full(2, margin / 64, np.float32)
    mine = commits("frechet", confidence, masked, margin=margin)
    factor = commits("factor", confidence, masked, factor=1 - margin)
    assert not (factor & ~mine).any()
    np.testing.assert_array_equal(mine[1], factor[1])
    # A larger margin commits no more.
    wider = commits("frechet", confidence, masked, margin=np.minimum(2 * margin, np.float32(1)))
    assert not (wider & ~mine).any()
