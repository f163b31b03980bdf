"""Influence: its formulas in plain Python, its two ends, and what it measures on a chain."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from leapjax.policies import POLICIES, Pass
from leapjax.policies.influence import PRIOR
from leapjax.types import COMMIT, PROPAGATED, Proposal
from tests.policies.batches import VOCAB, WIDTH, check_run, open_positions, reaches


class Rule:
    """The rule of one row, one position at a time."""

    def __init__(self, row):
        self.numbers = row["own"] | {n: row[n] for n in ("threshold", "relaxed_threshold")}
        self.moved, self.doubt = [0.0] * WIDTH, [0.0] * WIDTH
        self.last = None

    def step(self, row):
        masked, c, token = row["masked"], row["confidence"], row["token"]

        def between(i, j):
            return sum(not m for m in masked[min(i, j) + 1 : max(i, j)])

        left = open_positions(row)
        if self.last is not None:
            then, was, had = self.last
            fresh = [i for i in range(WIDTH) if then[i] and not masked[i]]
            for j in left if fresh else ():
                n = min(between(i, j) for i in fresh)
                source = sum(1 - was[i] for i in fresh if between(i, j) == n)
                moved = abs(c[j] - was[j]) if token[j] == had[j] else was[j]
                self.moved[n] += (1 - was[j]) * moved
                self.doubt[n] += (1 - was[j]) * source
        self.last = list(masked), list(c), list(token)
        prior = [float(PRIOR) * self.numbers["influence"] ** n for n in range(WIDTH)]
        each = [
            (m + p) / (d + PRIOR) for m, d, p in zip(self.moved, self.doubt, prior, strict=True)
        ]
        share = [1.0] + [min(1.0, max(each[n:])) for n in range(1, WIDTH)]
        chosen, order, numbers = {}, sorted(left, key=lambda i: -c[i]), self.numbers  # stable
        for n, j in enumerate(order):
            total = sum(share[between(i, j)] * (1 - c[i]) for i in order[: n + 1])
            bound = numbers["doubt_bound"]
            assume(total == bound or abs(total - bound) > 1e-5)  # float32 may round otherwise
            if reaches(c[j], numbers["threshold"]):
                chosen[j] = "anchor"
            elif c[j] >= numbers["relaxed_threshold"] and total < bound:
                chosen[j] = "propagated"
            elif n == 0:
                chosen[j] = "top1"
        return chosen


def tokens(rng, proposal, rows):
    token = rng.integers(0, VOCAB, (len(rows), WIDTH)).astype(np.int32) // 2  # most stay
    for row, one in zip(rows, token.tolist(), strict=True):
        row["token"] = one
    return proposal._replace(token=token)


def test_passes_are_the_published_rule():
    check_run("influence", Rule, change=tokens, examples=40)


def decision(confidence, masked, memory=None, **numbers):
    policy, (b, w) = POLICIES["influence"], confidence.shape
    if memory is None:
        shapes = policy.memory(w, VOCAB).items()
        memory = {name: np.zeros((b, *shape), dtype) for name, (shape, dtype) in shapes}
    numbers = {name: np.full(b, x, np.float32) for name, x in numbers.items()}
    info = Pass(quota=None, parameters=numbers, memory=memory)
    return policy.commit(Proposal(np.zeros((b, w), np.int32), confidence), masked, info)


def relaxed(confidence, masked, **numbers):
    return np.asarray(decision(confidence, masked, threshold=1.0, **numbers).kind) == PROPAGATED


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 8))
def test_doubts_add_up_over_the_block_or_in_each_run_alone(seed, bound):
    """The two ends: a doubt crosses decided positions in full, or not at all."""
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 65, (1, WIDTH)).astype(np.float32) / 64  # sums are exact
    masked = rng.random((1, WIDTH)) < 0.7
    run = np.cumsum(~masked, axis=1)
    numbers = {"relaxed_threshold": 0.0, "doubt_bound": bound / 4}
    for influence, group in ((1.0, np.zeros_like(run)), (0.0, run)):
        got = relaxed(confidence, masked, influence=influence, **numbers)[0]
        for one in np.unique(group):
            inside = np.flatnonzero(masked[0] & (group[0] == one))
            order = inside[np.argsort(-confidence[0, inside], kind="stable")]
            fits = np.cumsum(1 - confidence[0, order]) < bound / 4
            np.testing.assert_array_equal(got[order], fits)


@pytest.mark.parametrize("side", [1, -1])
def test_the_measured_influence_is_that_of_a_chain_of_two_states(side):
    """There it makes a difference of r ** distance whether a commit is right."""
    r, w = np.float32(0.8), 12
    masked, doubt = np.ones((1, w), bool), np.full((1, w), 0.3, np.float32)
    masked[0, 1:4], doubt[0, 0] = False, 0.25  # three decided ones, seen through noise
    numbers = {"threshold": 1.0, "relaxed_threshold": 1.0, "doubt_bound": 1.0, "influence": 0.0}
    first = decision((1 - doubt)[:, ::side], masked[:, ::side].copy(), **numbers)
    masked[0, 0] = False
    np.testing.assert_array_equal(first.action[0, ::side] == COMMIT, np.arange(w) == 0)
    after = 1 - doubt + np.float32(0.25) * r ** np.arange(w, dtype=np.float32)
    second = decision(after[:, ::side], masked[:, ::side], first.memory, **numbers)
    got = np.asarray(second.memory["moved"] / np.maximum(second.memory["doubt"], 1e-9))[0]
    np.testing.assert_allclose(got[3], np.mean(r ** np.arange(4, w)), rtol=1e-5)
    assert not np.delete(got, 3).any()
