"""One battery for the whole registry: what any policy promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax import DecodeConfig
from leapjax.config.check import declaration
from leapjax.policies import POLICIES
from leapjax.policies.parameters import EDITING_THRESHOLD
from leapjax.testing import tiny_config
from leapjax.types import COMMIT, COMMIT_KINDS, REOPEN, REPLACE, WHOLE_ROW, Proposal
from tests.policies.batches import FIELDS, OWN, ROWS, batch, commit_of, levels, stack

OPTIONAL = {EDITING_THRESHOLD.name}  # may be off

every = pytest.mark.parametrize("name", POLICIES)


@every
def test_the_registry_entry_is_complete(name):
    policy = POLICIES[name]
    assert policy.name == name and policy.source
    assert policy.needs <= WHOLE_ROW.union(Proposal._fields)
    hash(policy)
    for parameter in policy.parameters:
        declaration(parameter, policy)
    config, other = (DecodeConfig(policy=p).for_model(tiny_config()) for p in (name, "factor"))
    unset = {"steps_per_block"} | OPTIONAL
    assert all(config.value(n) is not None for n in policy.reads if n not in unset)
    block_causal = DecodeConfig(policy=name).for_model(tiny_config("sdar"))
    unset = {"steps"} | OPTIONAL
    assert all(block_causal.value(n) is not None for n in policy.reads if n not in unset)
    assert config.to_dict().keys() - other.to_dict() <= set(policy.reads)


@every
def test_commits_lie_within_the_masks_and_rows_progress(name):
    policy = POLICIES[name]
    commit = jax.jit(commit_of(policy))

    @settings(max_examples=60)
    @given(batch())
    def check(rows):
        proposal, masked, info = stack(rows, policy)
        decision = commit(proposal, masked, info)
        action, kind = np.asarray(decision.action), np.asarray(decision.kind)
        got = action == COMMIT
        assert action.shape == kind.shape == masked.shape and action.dtype == np.int8
        assert kind.dtype == np.int8 and not (got & ~masked).any()
        edits = policy.replaces or EDITING_THRESHOLD.name in policy.reads
        assert edits or not (action == REPLACE).any()
        assert policy.reopens or not (action == REOPEN).any()
        assert not (masked & (action > COMMIT)).any()
        assert {COMMIT_KINDS[k] for k in kind[got]} <= set(COMMIT_KINDS[1:])
        taken, live = got.sum(1), masked.sum(1)
        if policy.scheduled and "threshold" in policy.reads:
            assert (taken >= np.minimum(info.quota, live)).all()
        elif policy.scheduled:
            np.testing.assert_array_equal(taken, np.minimum(info.quota, live))
        else:
            assert (taken[live > 0] > 0).all()

    check()


@every
def test_slots_and_mates_change_nothing(name):
    policy = POLICIES[name]
    commit = jax.jit(commit_of(policy))

    @settings(max_examples=40)
    @given(batch(), batch(), st.permutations(range(ROWS)))
    def check(rows, mates, order):
        want = jax.device_get(commit(*stack(rows, policy)))
        moved = jax.device_get(commit(*stack([rows[i] for i in order], policy)))
        for now, before in enumerate(order):
            np.testing.assert_array_equal(moved.action[now], want.action[before])
            np.testing.assert_array_equal(moved.kind[now], want.kind[before])
        among = jax.device_get(commit(*stack([*mates[1:], rows[0]], policy)))
        np.testing.assert_array_equal(among.action[-1], want.action[0])

    check()


@every
def test_only_what_it_names_is_read(name):
    """A policy sees None where it did not ask, so `needs` can't be forgotten."""
    policy = POLICIES[name]
    rng = np.random.default_rng(0)
    row = {f: rng.integers(0, 5, 9) / 4 for f in FIELDS}
    row |= {"masked": [True] * 9, "threshold": 0.5, "relaxed_threshold": 0.25}
    proposal, masked, info = stack([row | {"radius": 1, "quota": 3}], policy)
    unasked = {f: None for f in Proposal._fields[2:] if f not in policy.needs}
    if "attention" in policy.needs and "received" not in policy.needs:
        unasked["attention"] = proposal.attention._replace(received=None)
    full = commit_of(policy)(proposal, masked, info)
    bare = commit_of(policy)(proposal._replace(**unasked), masked, info)
    np.testing.assert_array_equal(full.action, bare.action)
    # Nor is a parameter there that the policy does not declare.
    assert set(info.parameters) == {n for n, p in policy.reads.items() if p.traced}


@every
def test_second_call_compiles_nothing(name, compilations):
    policy = POLICIES[name]
    commit = jax.jit(commit_of(policy))
    rng = np.random.default_rng(1)

    def some(threshold, radius, quota):
        row = {f: rng.random(9) for f in FIELDS}
        row |= {"masked": rng.random(9) < 0.7, "threshold": threshold, "radius": radius}
        row |= {"own": {n: rng.choice(levels(n)) for n in OWN}}
        return stack([row | {"relaxed_threshold": threshold / 2, "quota": quota}], policy)

    with compilations.seen() as first:
        jax.block_until_ready(commit(*some(0.9, 4, 2)))
    assert len(first) == 1
    with compilations.none():
        for threshold, radius, quota in ((0.0, 0, 0), (0.5, 1, 9), (1.0, 2**31 - 1, 3)):
            jax.block_until_ready(commit(*some(threshold, radius, quota)))


@every
def test_options_vmap(name):
    """A grid of settings over one proposal is the settings one by one."""
    policy = POLICIES[name]
    rng = np.random.default_rng(2)
    row = {f: rng.integers(0, 5, 9) / 4 for f in FIELDS} | {"masked": rng.random(9) < 0.8}
    grid = [
        {"threshold": t, "relaxed_threshold": t / 2, "radius": r, "quota": q}
        | {"own": {name: rng.choice(levels(name)) for name in OWN}}
        for t, r, q in ((0.0, 0, 0), (0.5, 1, 2), (0.75, 3, 4), (1.0, 9, 9))
    ]
    proposal, masked, _ = stack([row | grid[0]])
    infos = [stack([row | point], policy)[2] for point in grid]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *infos)
    got = jax.jit(jax.vmap(lambda i: commit_of(policy)(proposal, masked, i)))(many)
    one = jax.jit(commit_of(policy))
    for point, info in enumerate(infos):
        np.testing.assert_array_equal(got.action[point], one(proposal, masked, info).action)
