"""WINO: drafts and second looks in plain Python; the shadow's blindness; termination."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax.decoding import forward
from leapjax.decoding.forward import block_columns
from leapjax.testing import tiny_config, tiny_params
from tests.decoding.harness import (
    BIDIRECTIONAL,
    decode,
    params_of,
    prompts,
    request,
    run,
    start,
    structure,
)
from tests.policies.batches import check_run, open_positions


class Rule:
    """Accept what is sure, at most so many; then take back what looks wrong, fewer still."""

    def __init__(self, row):
        self.tau, self.back = row["threshold"], row["own"]["remask_threshold"]
        self.begun = row["masked"]
        self.last = 30

    def step(self, row):
        left = open_positions(row)
        limit = min(max(int(len(left) * 0.7), 5), 20)
        order = sorted(left, key=lambda i: -row["confidence"][i])  # stable
        accepted = [i for i in order if row["confidence"][i] > self.tau][:limit]
        out = {i: "anchor" for i in accepted} or {order[0]: "top1"}
        if len(out) > 1:
            stand = [i for i, m in enumerate(self.begun) if m and not row["masked"][i]]
            doubted = [i for i in stand if row["recheck"][i] < np.float32(self.back)]
            doubted.sort(key=lambda i: row["recheck"][i])
            if len(doubted) >= self.last:
                doubted = doubted[: self.last - 1]
            self.last = len(out)
            return out | {i: "back" for i in doubted}
        self.last = len(out)
        return out


def test_passes_are_the_published_rule():
    """Within as many passes as there are positions: `check_run` allows no more."""
    check_run("wino", Rule, examples=200)


def layered(family, layers):
    config = dataclasses.replace(tiny_config(family), n_layers=layers)
    return config, tiny_params(config)


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_the_shadow_sees_all_but_its_own_token(family):
    """One layer: a token's change reaches every shadow but the one that predicts it."""
    model, params = layered(family, 1)
    config, program = structure("wino", family, gen=8, block=4)
    program = dataclasses.replace(program, model=model)
    plain = dataclasses.replace(program, policy_name="localleap")
    state = start([request([3, 4, 5, 6, 7], config), request([8], config)], program)
    columns, _ = block_columns(state.block, program)
    tokens = state.tokens.at[:, columns[0]].set(jnp.array([[9, 10, 11, 12], [1, 2, 3, 4]]))
    state = dataclasses.replace(state, tokens=tokens)
    full = jax.jit(forward.model_pass, static_argnums=3)
    seen = full(params, state, columns, program)
    without = full(params, state, columns, plain)
    np.testing.assert_allclose(seen.hidden, without.hidden, atol=1e-5)
    assert without.shadow is None
    for i in range(4):
        other = tokens.at[:, columns[0, i]].set(20)
        changed = full(params, dataclasses.replace(state, tokens=other), columns, program).shadow
        same = np.isclose(changed, seen.shadow, atol=1e-6).all(-1)
        assert same.tolist() == [[j == i for j in range(4)]] * 2


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_decodes_end_and_are_complete(family):
    config, program = structure("wino", family, threshold=0.2, remask_threshold=1.0)
    rng = np.random.default_rng(0)
    asked = [request(p, config, id=n) for n, p in enumerate(prompts(rng, 4))]
    params = params_of(family)
    outs = decode(params, asked, program)
    for out, r in zip(outs, asked, strict=True):
        canvas = slice(len(r.ids), None)
        assert out["done"] and program.model.mask_token_id not in out["tokens"][canvas]
        assert out["steps"] <= 12 and min(out["commit_step"][canvas]) >= 0
        assert set(out["commit_kind"][canvas]) <= {"anchor", "top1"}
        (alone,) = decode(params, [r], program, slots=4)
        assert alone == out
    never = request([1, 2], config.replace(remask_threshold=0.0))
    (out,) = decode(params, [never], program)
    assert out["done"] and len(set(out["commit_step"][2:])) == out["steps"]


def test_a_draft_that_is_taken_back_leaves_no_trace():
    """A pass later the position is open, holds the mask, and has no record."""
    config, program = structure("wino", "llada", gen=8, block=8, threshold=0.0)
    config = config.replace(remask_threshold=1.0)
    params = params_of("llada")
    state = start([request([1, 2, 3], config)], program)
    first = jax.device_get(run(params, start([request([1, 2, 3], config)], program), program, 1))
    second = jax.device_get(run(params, state, program, 2))
    back = ~first.open & second.open
    assert back.any()
    assert (second.tokens[back] == program.model.mask_token_id).all()
    assert (second.commit_step[back] == -1).all() and (second.commit_kind[back] == 0).all()
    assert (second.commit_confidence[back] == 0).all()


def test_a_seeded_token_is_never_taken_back():
    """Fast-dLLM v2's first token of a block is no draft of the policy's."""
    model = tiny_config("fast_dllm_v2")
    lm = leapjax.LM(tiny_params(model, 3), model, None)
    options = {"policy": "wino", "gen_length": 24, "threshold": 0.2, "remask_threshold": 1.0}
    prompts = [{"id": n, "prompt_ids": [5] * n} for n in (3, 8, 13)]
    for out, asked in zip(lm.stream(prompts, **options), prompts, strict=True):
        at = [(len(asked["prompt_ids"]) + i) % 8 for i in range(len(out.output_ids))]
        assert [s == -3 for s in out.commit_step] == [i == 0 for i in at]
        assert model.mask_token_id not in out.output_ids
