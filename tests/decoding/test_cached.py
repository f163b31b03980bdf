"""KV caches against a direct transcription, and what a row may not notice of its mates."""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig, decoding
from leapjax.planning import hlo
from leapjax.serve.lowering import compile_run
from tests.decoding.cached_oracle import NumpyModel, decode

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ("llada-a", "llada-b-gqa-bias-bf16", "dream-a", "dream-b-tied-bf16", "a2d-a")
MODELS += ("llada-moe-a",)
POLICIES = {
    "localleap": {"threshold": 0.8, "relaxed_threshold": 0.4, "radius": 2},
    "confidence_threshold": {"threshold": 0.6},
    "low_confidence": {"steps": 12},
}
EDITING = {"editing_threshold": 0.5, "max_post_steps": 3}


@pytest.fixture(scope="module")
def models():
    return {name: leapjax.load(GOLDEN / name) for name in MODELS}


def prompts(name, count):
    """Real prompts of the goldens, cut to mixed lengths."""
    lines = [line for f in GOLDEN.glob("decode*.jsonl") for line in f.read_text().splitlines()]
    full = [c["prompt_ids"] for c in map(json.loads, lines) if c["model"] == name]
    lengths = [None, 1, 2, 33, 7, 20, 12]
    return [full[i % len(full)][-n:] if n else full[0] for i, n in enumerate(lengths[:count])]


def facts(completion):
    c = completion
    return c.output_ids, c.steps, c.full_passes, c.commit_step


QUICK = {
    ("llada-a", "dual", "localleap, editing"),
    ("llada-b-gqa-bias-bf16", "dual", "localleap"),
    ("llada-a", "prefix", "confidence_threshold"),
    ("dream-a", "prefix", "low_confidence"),
    ("dream-b-tied-bf16", "dual", "localleap"),
    ("dream-a", "none", "localleap"),
    ("a2d-a", "dual", "localleap"),
    ("llada-moe-a", "prefix", "localleap"),
}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(
        MODELS, ("none", "prefix", "dual"), (*POLICIES, "localleap, editing")
    )
]


@pytest.mark.parametrize(("name", "cache", "policy"), CASES)
def test_cached_decode_is_the_transcription(models, name, cache, policy):
    lm = models[name]
    policy, *editing = policy.split(", ")
    own = POLICIES[policy] | (EDITING if editing else {})
    config = DecodeConfig(policy=policy, cache=cache, gen_length=24, block_length=8, **own)
    options = config.to_dict() | {
        "mask_id": lm.config.mask_token_id,
        "eos_id": lm.config.eos_token_id,
    }
    asked = prompts(name, 7)
    oracle = NumpyModel(lm.params, lm.config)
    compared = edited = 0
    for prompt, got in zip(asked, lm.generate(asked, config, batch_size=4), strict=True):
        want = decode(oracle, prompt, options)
        if want["margin"] < 2e-5:
            continue  # float32 may decide otherwise
        compared += 1
        edited += len(want["edits"])
        assert (got.edits or []) == want["edits"]
        assert facts(got) == tuple(
            want[k] for k in ("output_ids", "steps", "full_passes", "commit_step")
        )
    assert compared >= 5 and (edited > 0) == bool(editing)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dream-a", "llada-a"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_refresh_group_and_slots_change_nothing(models, name, cache):
    lm = models[name]
    config = DecodeConfig(gen_length=24, block_length=8, cache=cache, cfg_scale=0.5)
    requests = [lm.request(p, config, line=i) for i, p in enumerate(prompts(name, 7))]
    want = [facts(c) for c in lm.stream(requests, batch_size=1)]
    for slots, group in ((3, 1), (4, 4), (7, 3)):
        got = lm.stream(requests, batch_size=slots, refresh_group=group)
        assert [facts(c) for c in got] == want, (slots, group)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_the_pure_decode_answers_as_the_engine(models, cache):
    lm = models["dream-a"]
    options = POLICIES["localleap"] | {"gen_length": 16, "block_length": 8, "cache": cache}
    requests = [lm.request(p, DecodeConfig(**options)) for p in prompts("dream-a", 3)]
    program = lm.engine(4).program(requests[0])  # the longest prompt's
    state = jax.jit(decoding.decode, static_argnames="program")(
        lm.params, decoding.initial_state(requests, program), program
    )
    for b, answer in enumerate(lm.stream(requests)):
        assert np.asarray(state.tokens)[b, -16:].tolist() == answer.output_ids
        assert (state.steps[b], state.full_passes[b]) == (answer.steps, answer.full_passes)


@pytest.mark.parametrize(("group", "computed"), [(1, 5), (2, 6), (8, 5)])
def test_a_pass_refreshes_the_rows_that_begin_a_block_and_no_others(models, group, computed):
    """Five rows at once: as many turns as it takes, in one pass; the last one may be padded."""
    lm = models["llada-a"]
    config = DecodeConfig(
        gen_length=8, block_length=8, cache="dual", threshold=0.0, relaxed_threshold=0.0
    )
    engine = lm.engine(5, True, group)
    asked = [lm.request([3, 4, 5 + i], config, line=i) for i in range(5)]
    assert [(c.steps, c.full_passes) for c in engine.stream(asked)] == [(1, 1)] * 5
    found = engine.progress.refreshes
    assert (engine.progress.passes, found.window_passes) == (1, 0)
    assert (found.refreshed_rows, found.refresh_rows_wanted) == (computed, 5)
    assert found.share == 1.0


def test_the_loop_does_not_copy_the_cache(models):
    lm = models["llada-a"]
    request = lm.request([1, 2, 3], DecodeConfig(gen_length=32, block_length=8, cache="dual"))
    program = lm.engine(4, True, 1).program(request)
    text = compile_run(lm.params, program, 4).as_text()
    keys, _ = program.kv_cache.shapes(program, 4)
    shape = "f32[" + ",".join(map(str, keys.shape)) + "]"
    copies = [
        line for line in text.splitlines() if shape in line.split("(")[0] and " copy(" in line
    ]
    assert shape in text
    assert not copies, copies[0]


def test_dual_window_cost_does_not_grow_with_the_canvas(models):
    """Outside attention: the same matrix products whatever the canvas."""
    lm = models["llada-a"]
    flops = []
    for canvas in (64, 256):
        config = DecodeConfig(gen_length=canvas, block_length=8, cache="dual")
        request = lm.request([1, 2, 3], config)
        program = lm.engine(1, True, 1).program(request)
        text = compile_run(lm.params, program, 1).as_text()
        # Operands of the window's MLP: 8 columns, whatever the canvas.
        hidden = lm.config.mlp_hidden_size
        flops.append(text.count(f"f32[8,{hidden}]") + text.count(f"f32[1,8,{hidden}]"))
    assert flops[0] == flops[1] > 0


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 1.0}], ids=["plain", "guided"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_pass_without_a_refresh_pays_for_none(models, cache, options):
    """The full pass stays inside the loop that runs only when somebody waits.

    XLA moves out of a loop what does not depend on its carry: the whole full pass, once.
    """
    lm = models["llada-a"]
    config = DecodeConfig(gen_length=40, block_length=8, cache=cache, **options)
    request = lm.request([1, 2, 3], config)
    program = lm.engine(4, True, 1).program(request)
    module = hlo.parse(compile_run(lm.params, program, 4).as_text())
    # All 72 columns of the rows that refresh, in the MLP; nothing else has this shape.
    rows = 2 if options else 1
    width = lm.config.mlp_hidden_size
    full = {(rows * program.length, width), (rows, program.length, width)}
    depths = {
        module.depths[computation.name]
        for computation, instruction in module.everything()
        if any(array.dims in full for array in instruction.arrays)
    }
    # The decode loop, the refresh, the layers.
    assert depths and min(depths) == 3, depths


def test_oracle_windows_are_as_small_as_they_should_be(models):
    """The transcription itself computes what the rule says, so the comparison means something."""
    lm = models["dream-a"]
    oracle = NumpyModel(lm.params, lm.config)
    options = DecodeConfig(
        policy="low_confidence", steps=6, cache="dual", gen_length=16, block_length=8
    ).to_dict() | {"mask_id": lm.config.mask_token_id, "eos_id": -1}
    prompt = prompts("dream-a", 1)[0]
    decode(oracle, prompt, options)
    whole = len(prompt) + 16
    assert oracle.passes == [whole, 9, 9, whole, 9, 9]
    assert np.isfinite(oracle.logits(np.array(prompt), np.arange(len(prompt)), {})).all()
