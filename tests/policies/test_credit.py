"""Credit (dInfer): credits token by token in plain Python, over a block's passes."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax.policies import POLICIES
from tests.policies.batches import WIDTH, batch, check_rule, stack
from tests.policies.transcription import confidence_threshold

POLICY = POLICIES["credit"]
adjust = jax.jit(POLICY.adjust)


def credited(logits, credit, masked, own, barred):
    """One pass: (new logits, new credits) as lists."""
    out = []
    for w, row in enumerate(logits):
        credit[w] = [own["credit_decay"] * c for c in credit[w]]
        total = sum(math.exp(x) for x in row)
        best = max((v for v in range(len(row)) if v not in barred), key=lambda v: row[v])
        if masked[w]:
            credit[w][best] += (math.exp(row[best]) / total) ** own["credit_power"]
        plus = [own["credit_weight"] * math.log(1 + c) for c in credit[w]]
        out.append([x + y for x, y in zip(row, plus, strict=True)])
    return out, credit


@settings(max_examples=40)
@given(batch(), st.integers(0, 2**31))
def test_logits_are_the_published_rule(rows, seed):
    rng = np.random.default_rng(seed)
    v = 5
    credit = [[[0.0] * v for _ in range(WIDTH)] for _ in rows]
    memory = {"credit": np.zeros((len(rows), WIDTH, v), np.float32)}
    barred = np.broadcast_to(np.arange(v) == 2, (len(rows), 1, v))
    for _ in range(3):
        # Few levels, so that the most probable tokens tie.
        logits = rng.integers(-2, 3, (len(rows), WIDTH, v)).astype(np.float32)
        _, masked, info = stack(rows)
        got, memory = adjust(logits, barred, masked, info._replace(memory=memory))
        for b, row in enumerate(rows):
            want, credit[b] = credited(logits[b], credit[b], row["masked"], row["own"], {2})
            np.testing.assert_allclose(got[b], want, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(memory["credit"][b], credit[b], rtol=1e-5, atol=1e-6)


def test_what_is_proposed_commits_at_the_threshold():
    check_rule("credit", confidence_threshold)


def test_what_is_proposed_again_becomes_surer():
    row = {f: [0.5] * 9 for f in ("confidence", "margin", "entropy", "uniform", "surprise")}
    row |= {"masked": [True] * 9, "quota": 0, "radius": 0, "threshold": 0, "relaxed_threshold": 0}
    _, masked, info = stack([row], POLICY)
    logits = np.zeros((1, 9, 3), np.float32)
    logits[..., 1] = 1.0
    gaps = []
    for _ in range(4):
        out, memory = adjust(logits, np.zeros((1, 1, 3), bool), masked, info)
        info = info._replace(memory=memory)
        gaps.append(float(out[0, 0, 1] - out[0, 0, 0]))
    assert gaps == sorted(gaps) and gaps[0] == pytest.approx(
        1 + 0.7 * math.log(1 + (math.e / (math.e + 2)) ** 0.2), abs=1e-5
    )
