"""The loop: a repetition of `step`, and what no row may notice or lose."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax.config import pairs
from leapjax.decoding import refill_jit, row_arrays, stack_rows, step
from leapjax.decoding.edits import logged_passes
from leapjax.decoding.state import idle_row
from leapjax.policies import POLICIES
from leapjax.testing import tiny_config, tiny_params
from tests.decoding.harness import (
    BIDIRECTIONAL,
    EOT,
    MODELS,
    decode,
    params_of,
    prompts,
    request,
    row,
    run,
    start,
    structure,
)

DREAM = {"schedule": "dream", "block": 12, "steps": 7}


def pairs_with(policy, family):
    """Whether the family has what the policy reads."""
    return not pairs.refusal("none", policy, [MODELS[family].attention])


FIXED = [p for p in POLICIES if POLICIES[p].scheduled]
# (policy, family, options): what is compiled.
STRUCTURES = {
    "localleap": ("localleap", "llada", {"threshold": 0.6, "relaxed_threshold": 0.3}),
    "dream-schedule": ("low_confidence", "dream", DREAM),
    "all-at-once": (
        "localleap",
        "dream",
        {"cache": "dual", "cfg_scale": 0.5, "temperature": 0.7, "top_p": 0.9},
    ),
    "threshold-prefix": ("confidence_threshold", "llada", {"threshold": 0.5, "cache": "prefix"}),
    "random-sampled": ("random", "llada", {"temperature": 1.0, "steps": 6, "early_stop": False}),
    "certainty-prior-prefix": ("certainty_prior", "dream", {"cache": "prefix", "sigma": 2.0}),
    "position-calibration": ("position_calibration", "llada", {"early_stop": False}),
    "klass": (
        "klass",
        "llada",
        {"threshold": 0.3, "kl_threshold": 0.1, "kl_history": 1, "early_stop": False},
    ),
    "slowfast-prefix": (
        "slowfast",
        "llada",
        {"cache": "prefix", "explore_steps": 2, "early_stop": False},
    ),
    "credit-all-at-once": (
        "credit",
        "dream",
        {"cache": "dual", "cfg_scale": 0.5, "temperature": 0.7, "threshold": 0.3},
    ),
}
QUICK = ("localleap", "all-at-once", "credit-all-at-once")
BY_STRUCTURE = [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in STRUCTURES]


def batch(name, count=3, seed=0):
    policy, family, o = STRUCTURES[name]
    config, program = structure(policy, family, **o)
    rng = np.random.default_rng(seed)
    asked = [request(p, config, id=n) for n, p in enumerate(prompts(rng, count))]
    return params_of(family), asked, program


def same(a, b, exact=True):
    """Two pytrees, bit for bit; else floats up to rounding."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if exact or not np.issubdtype(x.dtype, np.floating):
            np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BY_STRUCTURE)
def test_the_loop_repeats_step_state_for_state(name):
    params, asked, program = batch(name)
    once = jax.jit(step, static_argnames="program")
    state, passes = start(asked, program), 0
    while not state.done.all():
        state, passes = once(params, state, program=program), passes + 1
        assert passes < 100
        looped = run(params, start(asked, program), program, passes)
        # Two compiled programs: float sums may differ in the last bit.
        same(jax.device_get(looped), jax.device_get(state), exact=False)
    assert passes > 3
    whole = run(params, start(asked, program), program)
    assert int(whole.iteration) == passes
    # Finished rows stay as they are.
    before = jax.device_get(whole)
    after = jax.device_get(once(params, whole, program=program))
    same(dataclasses.replace(after, iteration=before.iteration), before)


@pytest.mark.parametrize("name", BY_STRUCTURE)
def test_rows_progress_and_what_is_decided_stays(name):
    params, asked, program = batch(name, count=4, seed=1)
    state = start(asked, program)
    before, passes = jax.device_get(state), 0
    given = before.given.copy()
    first = before.tokens.copy()
    while not before.done.all():
        state = run(params, state, program, 1)
        after = jax.device_get(state)
        live = ~before.done & (after.steps > before.steps)
        gone = before.open & ~after.open
        if program.schedule == "even":  # some of Dream's passes commit nothing
            assert (gone.any(1) >= live).all()
        assert not (after.open & ~before.open).any()
        settled = ~before.open
        for field in ("tokens", "commit_step", "commit_kind", "commit_confidence"):
            old, new = getattr(before, field), getattr(after, field)
            np.testing.assert_array_equal(new[settled], old[settled])
        by_policy = after.commit_step >= 0
        assert (after.tokens[by_policy] != program.model.mask_token_id).all()
        assert (after.tokens[given] == first[given]).all()
        assert (after.done >= before.done).all()
        before, passes = after, passes + 1
        assert passes < 100
    assert not before.open.any()


def test_what_a_policy_remembers_ends_with_its_block():
    """A memory is void where a block begins: what stands there then changes nothing."""
    params, asked, program = batch("credit-all-at-once")
    state = start(asked, program)
    want = jax.device_get(run(params, start(asked, program), program))
    used = jax.tree.map(lambda x: x + jnp.asarray(9, x.dtype), state.memory)
    got = jax.device_get(run(params, dataclasses.replace(state, memory=used), program))
    for b in range(len(asked)):
        assert row(got, b) == row(want, b)


@pytest.mark.parametrize("name", BY_STRUCTURE)
def test_mates_slot_pads_and_refill_change_nothing(name):
    params, asked, program = batch(name, count=4, seed=2)
    mine, others = asked[3], asked[:3]
    slots = 3
    if program.cache != "none":  # as the engine's lanes do on CPU
        program = dataclasses.replace(program, refresh_group=1)
    alone = row(jax.device_get(run(params, start([mine], program, slots), program)), 0)
    assert alone["done"]

    full = run(params, start([others[0], others[1], mine], program), program)
    assert row(jax.device_get(full), 2) == alone

    state = start([others[2], mine, others[0]], program)
    pad = jnp.arange(program.length, dtype=jnp.int32)[None, :] < state.first[:, None]
    state = dataclasses.replace(state, tokens=jnp.where(pad, 7, state.tokens))
    assert row(jax.device_get(run(params, state, program)), 1) == alone

    # Into a slot that was used, while the neighbours are under way.
    state = run(params, start([others[0], others[2]], program, slots), program)
    state = seat(state, {0: others[1], 2: others[2]}, program)
    state = run(params, state, program, 2)
    before = jax.device_get(state)
    state = seat(state, {1: mine}, program)
    after = jax.device_get(state)
    for b in (0, 2):
        assert row(before, b, full=True) == row(after, b, full=True)
    assert row(jax.device_get(run(params, state, program)), 1) == alone


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_rows_in_the_middle_of_a_block_go_on_while_others_refresh(cache):
    params, asked, program = batch("all-at-once", seed=2)
    program = dataclasses.replace(program, cache=cache)
    state = run(params, start(asked, program), program, 1)
    assert state.full_passes.tolist() == state.steps.tolist() == [1, 1, 1]
    state = dataclasses.replace(state, block_step=jnp.array([0, 1, 0], jnp.int32))
    state = run(params, state, program, 1)
    assert state.full_passes.tolist() == [2, 1, 2] and state.steps.tolist() == [2, 2, 2]
    counts = state.counts
    assert (counts.window_passes, counts.refreshed_rows, counts.refresh_rows_wanted) == (1, 5, 5)


def seat(state, arrivals, program):
    """Refill these slots."""
    slots = state.done.shape[0]
    rows = [
        row_arrays(arrivals[b], program) if b in arrivals else idle_row(program)
        for b in range(slots)
    ]
    return refill_jit(state, stack_rows(rows), np.array([b in arrivals for b in range(slots)]))


def test_a_changed_number_compiles_nothing(compilations):
    config, program = structure("localleap", temperature=0.5, cfg_scale=1.0, top_p=0.9)
    params = params_of("llada")
    decode(params, [request([1, 2, 3], config)], program)
    changes = {
        "threshold": 0.8,
        "relaxed_threshold": 0.1,
        "radius": 2**31 - 1,
        "temperature": 1.5,
        "top_p": 0.3,
        "top_k": 5,
        "cfg_scale": 2.0,
        "early_stop": False,
        "logits_eos_inf": True,
        "confidence_eos_eot_inf": True,
        "seed": 2**32 - 1,
    }
    with compilations.none():
        for name, value in changes.items():
            decode(params, [request([4, 5], config.replace(**{name: value}))], program)
        decode(params, [request(range(10), config.replace(**changes))], program)


def test_a_changed_number_of_steps_compiles_nothing(compilations):
    config, program = structure("low_confidence", steps=3)
    params = params_of("llada")
    decode(params, [request([1, 2, 3], config)], program)
    with compilations.none():
        for steps in (6, 12, 24):
            (out,) = decode(params, [request([1, 2, 3], config.replace(steps=steps))], program)
            assert out["steps"] <= min(steps, 12)


def biased(family, token, size=100.0):
    """A model that always proposes this token."""
    config = tiny_config(family, head_bias=True)
    params = tiny_params(config)
    bias = np.zeros(config.vocab_size, np.float32)
    bias[token] = size
    return config, params | {"head_bias": jnp.asarray(bias)}


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_early_stop(family):
    """Eos ends a row at the end of its block; a given eos ends nothing."""
    model = MODELS[family]
    eos = model.eos_token_id
    model, params = biased(family, eos)
    config, program = structure("low_confidence", family, steps=12)
    program = dataclasses.replace(program, model=model)
    stopping = request([3, eos, 4], config)
    going = request([3, eos, 4], config.replace(early_stop=False))
    avoiding = request([3, eos, 4], config.replace(logits_eos_inf=True))
    stopped, went, avoided = decode(params, [stopping, going, avoiding], program)
    assert stopped["tokens"] == went["tokens"] == [3, eos, 4] + [eos] * 12
    assert stopped["steps"] == 4 and went["steps"] == avoided["steps"] == 12
    assert sorted(stopped["commit_step"][3:7]) == [0, 1, 2, 3]
    assert stopped["commit_step"][7:] == [-1] * 8
    assert stopped["commit_kind"][7:] == ["none"] * 8
    assert sorted(went["commit_step"][3:]) == list(range(12))
    assert eos not in avoided["tokens"][3:] and avoided["done"]


def test_muted_end_tokens_come_last():
    """With `confidence_eos_eot_inf`, eos and end-of-turn have confidence 0 and still commit."""
    eos = MODELS["llada"].eos_token_id
    for token in (eos, EOT):
        model, params = biased("llada", token)
        config, program = structure("localleap", threshold=0.9, confidence_eos_eot_inf=True)
        program = dataclasses.replace(program, model=model)
        (out,) = decode(params, [request([3], config.replace(early_stop=False))], program)
        assert out["tokens"] == [3] + [token] * 12
        assert out["steps"] == 12  # one at a time, leftmost first
        assert out["commit_step"][1:] == list(range(12))
        assert set(out["commit_confidence"][1:]) == {0.0}


MASKERS = [(p, f, {}) for p in POLICIES for f in MODELS if pairs_with(p, f)]
MASKERS += [(p, f, DREAM) for p in FIXED for f in BIDIRECTIONAL]
SOON = {("localleap", "llada", 0), ("random", "llada", 0), ("low_confidence", "dream", 3)}
MASKERS = [
    pytest.param(p, f, o, marks=() if (p, f, len(o)) in SOON else pytest.mark.slow)
    for p, f, o in MASKERS
]


@pytest.mark.parametrize(("policy", "family", "o"), MASKERS)
def test_a_model_that_proposes_the_mask_does_not_stall(policy, family, o):
    mask = MODELS[family].mask_token_id
    model, params = biased(family, mask)
    config, program = structure(policy, family, **o)
    program = dataclasses.replace(program, model=model)
    rows = [request([1, 2, 3], config), request([], config, id=1), request([mask], config, id=2)]
    for out, asked in zip(decode(params, rows, program), rows, strict=True):
        assert out["done"]
        n = len(asked.ids)
        assert out["tokens"][:n] == list(asked.ids)
        assert mask not in out["tokens"][n:]
        canvas = len(out["tokens"]) - n  # a block-causal model's may be longer than 12
        most = config.for_model(model).value("steps") or canvas
        assert out["steps"] <= (logged_passes(program) if program.edits else most)
        if o:  # Dream's: its passes are counted beforehand; the last one takes all
            assert out["steps"] == 7 and set(out["commit_step"][n:]) == {6}


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_a_mask_id_in_the_prompt_is_closed(family):
    mask = MODELS[family].mask_token_id
    config, program = structure("localleap", family)
    prompt = [mask, 3, mask, mask]
    (out,) = decode(params_of(family), [request(prompt, config)], program)
    assert out["done"] and out["tokens"][:4] == prompt
    assert mask not in out["tokens"][4:]
    assert out["commit_step"][:4] == [-2] * 4 and min(out["commit_step"][4:]) >= -1


@functools.cache
def infill_structure(family):
    return structure("localleap", family, infill=14, threshold=0.7, relaxed_threshold=0.4)


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_infill_keeps_what_is_given(family):
    """Open at the ends, in the middle, all of it; shorter than a block; a short last block."""
    mask, eos = MODELS[family].mask_token_id, MODELS[family].eos_token_id
    config, program = infill_structure(family)
    sequences = [
        [mask, 3, 4, mask],
        [3, mask],
        [mask],
        [mask] * 14,
        [eos, 1, mask, eos, 2, 3, 4, 5, 6, mask, 8],
        [5, 6, 7, mask, 1, 2, 3, mask, mask, eos, mask, 4, mask, mask],
    ]
    rows = [request(s, config, id=n, infill=True) for n, s in enumerate(sequences)]
    for out, ids in zip(decode(params_of(family), rows, program), sequences, strict=True):
        assert out["done"] and len(out["tokens"]) == len(ids)
        for got, was, when in zip(out["tokens"], ids, out["commit_step"], strict=True):
            assert (got == was and when == -2) if was != mask else (got != mask and when >= 0)


def test_a_block_without_an_open_position_takes_no_step():
    """The second and third of four blocks are given; one pass finishes each of the others."""
    mask = MODELS["llada"].mask_token_id
    config, program = infill_structure("llada")
    config = config.replace(threshold=0.0, relaxed_threshold=0.0)
    ids = [mask] * 4 + [3] * 8 + [mask] * 2
    (out,) = decode(params_of("llada"), [request(ids, config, infill=True)], program, 6)
    assert out["steps"] == 2
    assert out["commit_step"] == [0] * 4 + [-2] * 8 + [1] * 2


def test_nothing_open_is_done_at_once():
    config, program = infill_structure("llada")
    (out,) = decode(params_of("llada"), [request([1, 2, 3], config, infill=True)], program)
    assert out["done"] and out["steps"] == 0 and out["tokens"] == [1, 2, 3]


# Guards on the compiled loop.


def compiled(**o):
    from leapjax.serve.lowering import compile_run

    config, program = structure("localleap", gen=24, block=8, **o)
    return compile_run(params_of("llada"), program, 3), program


@pytest.mark.parametrize("o", [{}, {"cache": "dual", "temperature": 0.5}], ids=["plain", "cached"])
def test_compiled_loop(o):
    """No float64, no logits of the whole sequence, and the state lives once."""
    executable, program = compiled(**o)
    text = executable.as_text()
    assert "f64[" not in text
    t, v = program.length, program.model.vocab_size
    assert (t, v) == (34, 40)
    assert f"[3,8,{v}]" in text  # the window's logits are there,
    for shape in (f"[3,{t},{v}]", f"[{3 * t},{v}]", f"[{v},3,{t}]"):
        assert shape not in text  # the sequence's are not
    state = start([], program, 3)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    assert executable.memory_analysis().alias_size_in_bytes >= size
    assert "input_output_alias" in text
    passes = jnp.int32(1)
    executable(params_of("llada"), state, passes, passes)
    assert state.tokens.is_deleted() and state.commit_confidence.is_deleted()
