"""Certainty prior (d2Cache): the density by a plain double loop, then the schedule's best."""

import math

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax.policies import POLICIES
from leapjax.policies.certainty_prior import certainty_density
from tests.policies.batches import LEFT, batch, is_best, stack

REACH = 700
density_jit = jax.jit(certainty_density)


def density(known, at, sigma):
    """Gaussian share of known tokens around `at`; beyond the ends as the authors say."""
    above = below = 0.0
    for j in range(at - REACH, at + REACH + 1):
        inside = 0 <= j < len(known)
        is_known = known[j] if inside else (j < 0 or known[-1])
        weight = math.exp(-((at - j) ** 2) / (2 * sigma**2))
        above, below = above + weight * is_known, below + weight
    return above / below


def rule(row, b, info):
    """Scores of the window's positions."""
    known = (~info.open[b]).tolist()
    return [
        row["confidence"][i] * density(known, LEFT + i, row["own"]["sigma"])
        for i in range(len(row["masked"]))
    ]


@settings(max_examples=30)
@given(batch())
def test_commit_is_the_published_rule(rows):
    proposal, masked, info = stack(rows)
    decision = commit(proposal, masked, info)
    for b, row in enumerate(rows):
        chosen = np.flatnonzero(decision.action[b]).tolist()
        assert is_best(chosen, rule(row, b, info), row), row


commit = jax.jit(POLICIES["certainty_prior"].commit)


@settings(max_examples=20)
@given(
    st.lists(st.booleans(), min_size=40, max_size=40),
    st.sampled_from([0.1, 0.5, 1.0, 3.0, 10.0, 100.0]),
)
def test_density(known, sigma):
    columns = np.arange(40, dtype=np.int32)[None, :]
    got = density_jit(
        ~np.array([known]), columns, np.array([40], np.int32), np.array([sigma], np.float32)
    )
    want = [density(known, i, sigma) for i in range(40)]
    np.testing.assert_allclose(got[0], want, rtol=2e-5, atol=2e-6)


def test_pads_change_nothing():
    """In front of a row everything counts as known; what lies behind its end is not read."""
    rng = np.random.default_rng(0)
    open_ = rng.random((4, 12)) < 0.5
    open_[:, -1] = [False, True, False, True]
    sigma = np.full(4, 4.0, np.float32)
    columns = np.broadcast_to(np.arange(4, 12, dtype=np.int32), (4, 8))
    want = density_jit(open_, columns, np.full(4, 12, np.int32), sigma)
    front = np.concatenate([np.zeros((4, 9), bool), open_], axis=1)
    got = density_jit(front, columns + 9, np.full(4, 21, np.int32), sigma)
    np.testing.assert_allclose(got, want, atol=1e-6)
    for behind in (False, True):
        wide = np.concatenate([open_, np.full((4, 9), behind)], axis=1)
        got = density_jit(wide, columns, np.full(4, 12, np.int32), sigma)
        np.testing.assert_allclose(got, want, atol=1e-6)
