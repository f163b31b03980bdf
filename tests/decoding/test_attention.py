"""Policies that read the attention of a pass, in whole decodes; what others pay for it: nothing."""

import dataclasses
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig, UserError
from leapjax.decoding import forward, run_jit, whole_rows
from leapjax.models import transformer
from leapjax.policies import POLICIES, Policy, commits
from leapjax.policies.base import surest
from leapjax.testing import tiny_config
from leapjax.types import TOP1
from tests.decoding.harness import MODELS, params_of, request, run, start, structure

OPTIONS = {
    "dawn": {"tau_sink": 0.12, "tau_edge": 0.05, "tau_induce": 0.3, "tau_low": 0.4},
    "clad": {"threshold": 0.4},
}
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8], [9], [0], [4, 4, 4], [30, 2, 17, 5], [8, 9], [3, 1, 4, 1, 5]]


def answers(lm, config, batch):
    asked = [lm.request({"id": f"r{n}", "prompt_ids": p}, config) for n, p in enumerate(PROMPTS)]
    found = [dataclasses.asdict(c) for c in lm.stream(asked, batch_size=batch)]
    if lm.config.qk_norm:  # their norms are XLA's: the last bits may differ (docs/architecture.md)
        for one in found:
            del one["commit_confidence"]
    return found


@pytest.mark.parametrize(
    ("policy", "family"),
    [
        pytest.param(p, f, marks=() if (p, f) == ("dawn", "llada") else pytest.mark.slow)
        for p in OPTIONS for f in MODELS if MODELS[f].has_attention
    ],
)  # fmt: skip
def test_rows_are_the_same_bits_in_every_batch(policy, family):
    """Alone, and in 2 and 7 slots, those of finished rows refilled; confidences too."""
    lm = leapjax.LM(params_of(family), MODELS[family], codec=None)
    config = DecodeConfig(policy=policy, gen_length=16, block_length=8, **OPTIONS[policy])
    config = config.for_model(lm.config)
    assert config.cache == "none"
    alone = answers(lm, config, 1)
    assert answers(lm, config, 2) == alone and answers(lm, config, 7) == alone
    assert len({tuple(a["output_ids"]) for a in alone}) > 3
    assert any(a["steps"] < 12 for a in alone)


def lowered(policy, **options):
    config, program = structure(policy, **options)
    state = start([request([1], config)], program)
    count = jnp.int32(1)
    text = run_jit.lower(params_of("llada"), state, count, count, program=program)
    return text.as_text(debug_info=True)


def test_only_programs_that_ask_have_a_map():
    """Nor do others compute the confidence of columns outside the window."""
    scopes = ("attention map", "confidence of whole rows")
    for policy in ("localleap", "low_confidence", "klass", "wino", *OPTIONS):
        text, needs = lowered(policy), POLICIES[policy].needs
        assert [s in text for s in scopes] == [n in needs for n in ("attention", "sure")], policy


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("policy", OPTIONS)
def test_a_kv_cache_is_refused(policy, cache):
    line = f"cache is {cache}, but policy {policy} reads the whole sequence in every pass; "
    with pytest.raises(UserError, match=f"^{line}choose cache none or another policy$"):
        DecodeConfig(policy=policy, cache=cache)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"family": "dream"}, marks=pytest.mark.slow),
        {"cfg_scale": 1.0},
        {"family": "dream", "infill": 14},
    ],
    ids=["plain", "shifted", "guided", "infill"],
)
def test_what_is_computed_of_whole_rows(registry, options):
    """The confidence at every column, a few at a time; the map of the conditional copy."""
    seen = {}

    def commit(proposal, masked, info):
        jax.debug.callback(lambda **found: seen.update(found), p=proposal, info=info)
        return commits(surest(proposal.confidence, masked), TOP1)

    needs = frozenset({"attention", "received", "sure"})
    leapjax.register_policy(Policy("looks", "a test", commit, needs=needs))
    config, program = structure("looks", **options)
    family, mask = options.get("family", "llada"), program.model.mask_token_id
    rows = [[1, mask, 3, 4, mask], [5]] if "infill" in options else [[1, 2, 3], [5]]
    asked = [request(ids, config, infill="infill" in options) for ids in rows]
    state, params = start(asked, program), params_of(family)
    before = jax.tree.map(jnp.copy, state)
    with patch.object(whole_rows, "LOGITS", 4 * 2 * program.model.vocab_size * 5):  # 5 columns
        jax.block_until_ready(run(params, state, program, passes=1))
    jax.effects_barrier()
    proposal, info = seen["p"], seen["info"]
    view = forward.Rows(before, program)
    column = jnp.arange(program.length, dtype=jnp.int32)[None, :]
    hidden = transformer.hidden_states(
        params,
        program.model,
        view.ids(),
        view.both(view.positions(column)),
        view.both(view.valid()),
    )
    logits = np.array(forward.window_logits(params, hidden, before, program), np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    best = np.delete(weights, mask, -1).max(-1) / weights.sum(-1)
    first = np.asarray(before.first)
    np.testing.assert_array_equal(info.first, first)
    for b, start_ in enumerate(first):
        source = np.arange(start_, program.length)
        if program.model.shift_logits:
            source = np.maximum(source - 1, start_)
        np.testing.assert_allclose(proposal.sure[b, start_:], best[b, source], rtol=1e-4)
        np.testing.assert_array_equal(proposal.sure[b, :start_], 0)
        np.testing.assert_allclose(
            proposal.sure[b, info.columns[b]][np.asarray(info.columns[b]) >= start_],
            proposal.confidence[b][np.asarray(info.columns[b]) >= start_],
            rtol=1e-5,
        )
        np.testing.assert_allclose(
            np.sum(proposal.attention.received[b]), program.length - start_, rtol=1e-5
        )
    plain = leapjax.models.attention_states.attention_states(
        params,
        program.model,
        before.tokens,
        view.positions(column),
        view.valid(),
        jnp.asarray(info.columns),
        True,
    )
    for one, other in zip(proposal.attention, plain[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_model_without_attention_is_refused():
    line = "^policy clad reads attention, which the model has not; choose another one$"
    with pytest.raises(UserError, match=line):
        DecodeConfig(policy="clad").for_model(tiny_config("chain"))


def test_a_policy_may_not_look_twice_and_at_whole_rows(registry):
    needs = frozenset({"recheck", "sure"})
    both = Policy("both", "a test", POLICIES["localleap"].commit, needs=needs)
    with pytest.raises(UserError, match="^policy both: needs recheck and more of the whole row"):
        leapjax.register_policy(both)
