"""Every policy commits what its published rule says, for the reason it says."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings

from leapjax.policies import POLICIES
from leapjax.types import COMMIT_KINDS
from tests.policies.batches import batch, stack
from tests.policies.transcription import RULES


def test_every_policy_has_its_rule():
    assert set(RULES) == set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_commit_is_the_published_rule(name):
    commit = jax.jit(POLICIES[name].commit)

    @settings(max_examples=200)
    @given(batch())
    def check(rows):
        decision = commit(*stack(rows))
        got, kind = np.asarray(decision.commit), np.asarray(decision.kind)
        for b, row in enumerate(rows):
            chosen = {int(i): COMMIT_KINDS[kind[b, i]] for i in np.flatnonzero(got[b])}
            assert chosen == RULES[name](row), row

    check()
