"""LocalLeap alone: distances, the plain-threshold limit, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax import DecodeConfig
from leapjax.policies import POLICIES, Pass
from leapjax.policies.localleap import anchor_distances
from leapjax.types import COMMIT, Proposal
from tests.policies.batches import batch, stack

WIDTH = 11


@settings(max_examples=200)
@given(st.lists(st.booleans(), min_size=WIDTH, max_size=WIDTH))
def test_anchor_distances_are_the_nearest_anchors(anchor):
    sides = np.asarray(distances(np.array([anchor])))[:, 0]
    for i in range(WIDTH):
        anchors = [a for a in range(WIDTH) if anchor[a]]
        for got, sign in zip(sides, (1, -1), strict=True):
            side = [sign * (i - a) for a in anchors]
            want = min((d for d in side if d >= 0), default=None)
            assert got[i] >= 2**29 if want is None else got[i] == want


distances = jax.jit(anchor_distances)


@settings(max_examples=100)
@given(batch())
def test_relaxed_at_the_threshold_is_confidence_threshold(rows):
    equal = stack([r | {"relaxed_threshold": r["threshold"]} for r in rows])
    got, want = leap(*equal), plain(*equal)
    np.testing.assert_array_equal(got.action, want.action)
    chosen = np.asarray(got.action) == COMMIT
    np.testing.assert_array_equal(np.asarray(got.kind)[chosen], np.asarray(want.kind)[chosen])


leap = jax.jit(POLICIES["localleap"].commit)
plain = jax.jit(POLICIES["confidence_threshold"].commit)


def test_without_anchor_only_the_surest_commits_whatever_the_radius():
    row = {f: [0.5] * 9 for f in ("margin", "entropy", "uniform", "surprise")}
    row |= {"confidence": [0.5, 0.5, 0.75, *[0.5] * 6], "masked": [True] * 9, "quota": 0}
    row |= {"threshold": 0.9, "relaxed_threshold": 0.25}
    for radius in (0, 4, 2**29, 2**31 - 1):
        got = np.asarray(leap(*stack([row | {"radius": radius}])).action)
        assert np.flatnonzero(got).tolist() == [2], radius


def test_cost_is_linear_in_the_window():
    """No (W, W) buffer, and twice the window is twice the work; the radius is data."""

    def compiled(width):
        shape = jax.ShapeDtypeStruct((1, width), jnp.float32)
        one, many = (jax.ShapeDtypeStruct((1,), d) for d in (jnp.float32, jnp.int32))
        reads = POLICIES["localleap"].reads.items()
        numbers = {name: one if p.kind is float else many for name, p in reads}
        masked = jax.ShapeDtypeStruct((1, width), bool)
        proposal = Proposal(jax.ShapeDtypeStruct((1, width), jnp.int32), shape)
        return leap.lower(proposal, masked, Pass(many, numbers)).compile()

    small, large = compiled(512), compiled(1024)
    assert "1024,1024" not in large.as_text()
    work = [p.cost_analysis()["bytes accessed"] for p in (small, large)]
    assert work[1] < 2.5 * work[0], work
    temporary = large.memory_analysis().temp_size_in_bytes
    assert temporary < 64 * 1024, temporary  # a handful of rows, not a square


def test_the_radii_follow_the_radius_until_they_are_set():
    config = DecodeConfig(radius=2)
    assert (config.value("radius_left"), config.value("radius_right")) == (2, 2)
    config = config.replace(radius_right=0)
    assert (config.value("radius_left"), config.value("radius_right")) == (2, 0)
    assert DecodeConfig(policy="confidence_threshold").value("radius_left") is None
