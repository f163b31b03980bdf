"""Policies that put other tokens in place of those that they committed, and those that don't."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax import register_policy
from leapjax.decoding import forward, step
from leapjax.decoding.forward import block_columns
from leapjax.decoding.proposal import propose
from leapjax.errors import UserError
from leapjax.policies import POLICIES, Parameter, Policy, commits
from leapjax.policies.base import surest
from leapjax.studies.observations import check
from leapjax.types import ANCHOR, COMMIT_KINDS, PROPAGATED, REOPEN, REPLACE, TOP1
from tests.decoding.harness import decode, params_of, prompts, request, run, start, structure

OTHER = 7  # an ordinary token


def edit(proposal, masked, info):
    """Commit the surest; rewrite what the model now proposes otherwise, and is sure enough of."""
    decision = commits(surest(proposal.confidence, masked), TOP1)
    wants = proposal.confidence >= info.parameters["edit_threshold"][:, None]
    return decision._replace(
        # Also where it makes no sense, at given and open positions: that must change nothing.
        action=jnp.where(wants & (decision.action == 0), jnp.int8(REPLACE), decision.action),
        kind=jnp.where(wants, jnp.int8(ANCHOR), decision.kind),
    )


def noise(proposal, masked, info):
    """The same with a token of its own, and once in each block all that is decided opens."""
    decision = edit(proposal, masked, info)
    back = ~masked & (info.memory["passes"] == 2)[:, None]
    return decision._replace(
        action=jnp.where(back, jnp.int8(REOPEN), decision.action),
        kind=jnp.full_like(decision.kind, PROPAGATED),
        token=jnp.full_like(proposal.token, OTHER),
        memory={"passes": info.memory["passes"] + 1},
    )


EDIT = Policy(
    name="edit",
    source="a test",
    commit=edit,
    parameters=(Parameter("edit_threshold", float, "to rewrite", 0.0, low=0, high=1),),
    replaces=True,
)
NOISE = dataclasses.replace(
    EDIT,
    name="noise",
    commit=noise,
    reopens=True,
    memory=lambda w, v: {"passes": ((), np.int32)},
)


@pytest.fixture(autouse=True)
def registered(registry):
    register_policy(EDIT)
    register_policy(NOISE)


def expected(before, proposal, wants, kind, token, back, mask):
    """One pass by hand, position by position; back: columns that would open again.

    Returns:
      The fields of `RECORD` after it, and its log, (row, column, token).
    """
    after, log = {n: np.array(getattr(before, n)) for n in RECORD}, []
    for b in np.flatnonzero(~before.done):
        columns = np.arange(before.block[b], before.block[b] + 4)
        place = {int(c): i for i, c in enumerate(columns)}
        open_ = [c for c in place if before.open[b, c]]
        sure = max(open_, key=lambda c: proposal.confidence[b, place[c]])
        for c, i in place.items():
            new, confidence = proposal.token[b, i], proposal.confidence[b, i]
            said, step = ANCHOR if wants[b, i] else TOP1, before.steps[b]
            said = said if kind is None else kind
            room = step < before.edits.tokens.shape[1]
            if c == sure:
                after["open"][b, c] = False
                if room:
                    log.append((b, c, new))
            elif before.open[b, c] or before.given[b, c]:
                continue
            elif c in back[b]:
                after["open"][b, c] = True
                new, step, said, confidence = mask, -1, 0, 0.0
            else:
                new = new if token is None else token
                if room and wants[b, i] and new != before.tokens[b, c]:
                    after["tokens"][b, c] = new
                    log.append((b, c, new))
                continue
            after["tokens"][b, c], after["commit_kind"][b, c] = new, said
            after["commit_step"][b, c], after["commit_confidence"][b, c] = step, confidence
    return after, log


RECORD = ("tokens", "open", "commit_step", "commit_kind", "commit_confidence")


@pytest.mark.parametrize("name", ["edit", "noise"])
def test_each_pass_rewrites_what_was_decided_and_nothing_else(name):
    config, program = structure(name, "llada", edit_threshold=0.05, early_stop=False)
    params = params_of("llada")
    rng = np.random.default_rng(5)
    asked = [request(rng.integers(0, 38, n), config, id=n) for n in (10, 3, 5, 2)]
    # Some of the last row's canvas is given, as in infilling.
    state = start(asked, program)
    canvas = state.tokens.shape[1] - 12
    given = state.given.at[3, canvas + 1].set(True)
    state = state.replace(
        given=given,
        open=state.open & ~given,
        tokens=state.tokens.at[3, canvas + 1].set(9),
        block_masks=state.block_masks.at[3].add(-1),
    )
    one = jax.jit(step, static_argnames="program")

    @jax.jit
    def proposed(state):
        columns, _ = block_columns(state.block, program)
        hidden = forward.model_pass(params, state, columns, program).hidden
        logits = forward.window_logits(params, hidden, state, program)
        return propose(logits, state.options, None, None, program)

    replaced = opened = 0
    for _ in range(40):
        before = jax.device_get(state)
        if before.done.all():
            break
        proposal = jax.device_get(proposed(state))
        state = one(params, state, program)
        back = [[] for _ in asked]
        if name == "noise":
            passes = before.memory["passes"] * (before.block_step > 0)
            back = [range(99) if passes[b] == 2 else [] for b in range(4)]
        how = {"edit": (None, None), "noise": (PROPAGATED, OTHER)}[name]
        wants = proposal.confidence >= np.float32(0.05)
        want, logged = expected(before, proposal, wants, *how, back, program.model.mask_token_id)
        for field in RECORD:
            # The same numbers from another program, so confidences may differ by rounding.
            np.testing.assert_allclose(getattr(state, field), want[field], 1e-5, 0)
        log = jax.device_get(state.edits)
        for b in np.flatnonzero(~before.done):
            at, own = before.steps[b], [e for e in logged if e[0] == b]
            if at >= log.column.shape[1]:  # the log is full
                assert not own
                continue
            entry = enumerate(log.tokens[b, at], log.column[b, at])
            assert [(b, c, new - 1) for c, new in entry if new] == own
        changed = (want["tokens"] != before.tokens) & ~before.open
        opened += (want["open"] & ~before.open).sum()
        replaced += (changed & ~want["open"]).sum()
    assert before.done.all() and replaced > 3 and (opened > 3) == (name == "noise")


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_rows_are_alone(cache):
    """Mates change no row, with a KV cache too; an eos that is rewritten ends nothing."""
    config, program = structure("edit", "dream", cache=cache, edit_threshold=0.05)
    rng = np.random.default_rng(0)
    asked = [request(p, config, id=n) for n, p in enumerate(prompts(rng, 3))]
    outs = decode(params_of("dream"), asked, program)
    for out, r in zip(outs, asked, strict=True):
        (alone,) = decode(params_of("dream"), [r], program, slots=3)
        assert alone == out and out["done"]
        assert program.model.mask_token_id not in out["tokens"][len(r.ids) :]
        assert set(out["commit_kind"]) <= set(COMMIT_KINDS)


def test_what_is_not_declared_is_not_done_and_costs_nothing():
    """An undeclared action is ignored, in a program without an operation for it."""
    quiet = dataclasses.replace(EDIT, name="quiet", replaces=False)
    plain = dataclasses.replace(
        quiet, name="plain", commit=lambda p, m, i: commits(surest(p.confidence, m), TOP1)
    )
    writes, states = {}, {}
    for policy in (EDIT, quiet, plain):
        if policy.name not in POLICIES:
            register_policy(policy)
        config, program = structure(policy.name)
        state, params = start([request([3, 1], config)], program), params_of("llada")
        text = jax.jit(step, static_argnames="program").lower(params, state, program).as_text()
        # Each field that is written gathers its columns' new values.
        writes[policy.name] = text.count('"stablehlo.gather"')
        states[policy.name] = jax.device_get(run(params, state, program))
    assert writes["quiet"] == writes["plain"] < writes["edit"], writes
    np.testing.assert_array_equal(states["quiet"].tokens, states["plain"].tokens)
    np.testing.assert_array_equal(states["quiet"].commit_step, states["plain"].commit_step)


def test_a_replay_refuses_it():
    config, _ = structure("edit")
    with pytest.raises(UserError, match="policy edit changes tokens that it committed"):
        check(config)
