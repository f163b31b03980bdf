"""Position calibration (PC-Sampler): its score position by position, then the schedule's best."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings

import leapjax
from leapjax.policies import POLICIES
from leapjax.policies.position_calibration import log_frequencies
from leapjax.testing import tiny_config, tiny_params
from tests.policies.batches import batch, is_best, stack

commit = jax.jit(POLICIES["position_calibration"].commit)


def rule(row):
    """exp(-lambda i) min(-c log q, alpha), i counted from the block's start."""
    own = row["own"]
    return [
        math.exp(-own["position_decay"] * i) * min(c * minus_log_q, own["surprise_cap"])
        for i, (c, minus_log_q) in enumerate(zip(row["confidence"], row["surprise"], strict=True))
    ]


@settings(max_examples=200)
@given(batch())
def test_commit_is_the_published_rule(rows):
    decision = commit(*stack(rows))
    for b, row in enumerate(rows):
        chosen = np.flatnonzero(decision.action[b]).tolist()
        assert is_best(chosen, rule(row), row), row


def test_position_counts_from_the_block_not_the_window():
    """A short last block's window reaches back; its first open position has place 0."""
    row = {f: [1.0] * 9 for f in ("confidence", "margin", "entropy", "uniform", "surprise")}
    row |= {"masked": [False] * 4 + [True] * 5, "quota": 1, "radius": 0}
    row |= {"threshold": 0, "relaxed_threshold": 0}
    row |= {"own": {"position_decay": 100.0, "surprise_cap": 10.0}}
    proposal, masked, info = stack([row])
    info = info._replace(block=info.block + 4)
    assert np.flatnonzero(commit(proposal, masked, info).action[0]).tolist() == [4]


def test_log_frequencies():
    got = log_frequencies([6, 0, 2])
    np.testing.assert_allclose(got, np.log([6 / 8, 1 / 8, 2 / 8]), rtol=1e-5)


def test_counts_change_the_order():
    """A corpus in which the proposed token is everywhere makes the others come first."""
    model = tiny_config("llada")
    lm = leapjax.LM(tiny_params(model), model, None)
    config = leapjax.DecodeConfig(
        policy="position_calibration", gen_length=8, block_length=8, position_decay=0.0
    )
    asked = {"id": 1, "prompt_ids": [3, 4, 5]}

    def decoded(lm):
        return next(lm.stream([lm.request(asked, config)], batch_size=1))

    plain = decoded(lm)
    even = decoded(lm.with_token_counts(np.ones(model.vocab_size, int)))
    assert (even.output_ids, even.commit_step) == (plain.output_ids, plain.commit_step)
    counts = np.zeros(model.vocab_size, int)
    first = plain.output_ids[plain.commit_step.index(0)]
    counts[first] = 10**9
    skewed = decoded(lm.with_token_counts(counts))
    assert skewed.commit_step != plain.commit_step
    with pytest.raises(leapjax.UserError, match="expected 40 numbers"):
        lm.with_token_counts([1, 2])
