"""Factor (Fast-dLLM): the paper's formula, one n after the other."""

import numpy as np

from leapjax.policies import POLICIES
from tests.policies.batches import check_rule, open_positions, stack


def rule(row):
    """The largest n with (n + 1)(1 - c_n) < f, the surest in any case."""
    order = sorted(open_positions(row), key=lambda i: -row["confidence"][i])  # stable
    best = 0
    for n in range(1, len(order) + 1):
        if (n + 1) * (1 - row["confidence"][order[n - 1]]) < row["own"]["factor"]:
            best = n
    if best == 0:
        return {i: "top1" for i in order[:1]}
    return {i: "anchor" for i in order[:best]}


def test_commit_is_the_published_rule():
    check_rule("factor", rule)


def test_the_originals_exception_for_the_last_candidate_is_not_copied():
    row = {f: [0.0] * 9 for f in ("margin", "entropy", "uniform", "surprise")}
    row |= {"confidence": [1.0] * 8 + [0.0], "masked": [True] * 9, "quota": 0, "radius": 0}
    row |= {"threshold": 0, "relaxed_threshold": 0, "own": {"factor": 1.0}}
    got = np.asarray(POLICIES["factor"].commit(*stack([row])).action[0])
    assert got.tolist() == [True] * 8 + [False]
