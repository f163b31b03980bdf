"""Passes against the floor: what is timed, how it is summed up, and the command."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax.benchmarks import floor_shares, machine, models, pass_timing
from leapjax.benchmarks.workload import Case
from leapjax.cli.benchmark import main
from leapjax.models import transformer
from leapjax.models.quantize import quantize
from leapjax.ops.split import canonical, largest_group, split_layers
from leapjax.planning.work import Work
from leapjax.testing import tiny_config, tiny_params

CASE = Case("dual", 2, 8, 16, 8, 1)
CONFIG = models.TINY_8B


@pytest.fixture(scope="module")
def lm():
    return models.by_name("llada-8b", quick=True)


def test_random_weights_are_of_the_shape_and_dtype(lm):
    shapes = jax.tree.map(lambda x: x.shape, lm.params)
    assert shapes == models.param_shapes(CONFIG)
    assert {x.dtype for x in jax.tree.leaves(lm.params)} == {jnp.dtype("bfloat16")}
    up = np.asarray(lm.params["layers"]["up"], np.float32)
    assert up.std() == pytest.approx(0.02, rel=0.05) and abs(up.mean()) < 0.001
    assert len({layer.tobytes() for layer in up}) == CONFIG.n_layers


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_layers_of_their_own_compute_the_same(family, quantized):
    """Fused with their biases (Dream's) and scales (of int8), whole and where some are cut out."""
    config = tiny_config(family)
    params = jax.tree.map(jnp.copy, tiny_params(config))
    params = quantize(params, config, "int8") if quantized else params
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 12)), jnp.int32)
    places = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), (2, 12))
    valid = places >= 1

    def states(params, outputs):
        return np.asarray(
            transformer.hidden_states(params, config, ids, places, valid, outputs=outputs)
        )

    some = places[:, 4:8]
    whole, cut = states(params, None), states(params, some)
    stacks = list(params["layers"].values())
    most, host = largest_group(params, config), jax.tree.map(np.asarray, params)
    apart = split_layers(params, config, force=True)
    assert split_layers(apart, config) is apart
    each = apart.runs[0].layers
    leaves = [jax.tree.leaves(layer) for layer in each]
    assert most == max(sum(x.nbytes for x in same) for same in zip(*leaves, strict=True))
    assert all(stack.is_deleted() for stack in stacks)
    assert all(len(each[0][group].weights) == 1 for group in ("vkq", "gate_up"))
    again = canonical(apart, config)
    assert jax.tree.structure(again) == jax.tree.structure(host)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(host)))
    np.testing.assert_allclose(states(apart, None), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(states(apart, some), cut, rtol=1e-4, atol=1e-5)


def test_a_cpu_keeps_its_stacks():
    params = tiny_params(config := tiny_config())
    assert split_layers(params, config) is params


def test_the_model_alone_computes_what_the_step_does():
    """After the same full pass, a window pass of each leaves the same keys and values."""
    params = models.random_lm(CONFIG).params
    program = pass_timing.program_of(CASE, CONFIG, "float32")
    compiled = pass_timing.Compiled(params, CASE, program)
    count = np.int32(CASE.batch)
    states = [pass_timing.begin(CASE, program) for _ in range(2)]
    step, alone = (compiled.step(params, s, np.int32(1), count) for s in states)
    # The step's second pass and the first of `bare`, which sees the same tokens.
    one = pass_timing.bare_jitted()(params, alone, passes=1, program=program)
    step = compiled.step(params, step, np.int32(1), count)
    for got, want in zip(one.cache, step.cache, strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-5, atol=1e-6)
    assert int(step.full_passes.sum()) == CASE.batch and int(step.steps.sum()) == 2 * CASE.batch


def test_prompts_hold_no_special_ids_wherever_these_are():
    config = tiny_config(mask_token_id=0, eos_token_id=1)
    state = pass_timing.begin(CASE, pass_timing.program_of(CASE, config, "float32"))
    prompts = np.asarray(state.tokens)[:, : CASE.prompt_length]
    assert prompts.min() >= 2 and len(np.unique(prompts)) > 5


@pytest.mark.slow
def test_timings_are_of_the_passes_they_say(lm):
    """One token a step: the timed windows end the first block, and no pass is counted twice."""
    program = pass_timing.program_of(CASE, CONFIG, lm.dtype)
    compiled = pass_timing.Compiled(lm.params, CASE, program)
    state = pass_timing.begin(CASE, program)
    count = np.int32(CASE.batch)
    state = compiled.step(lm.params, state, np.int32(1), count)
    assert state.full_passes.tolist() == [1, 1]
    state = compiled.step(lm.params, state, np.int32(pass_timing.passes_of(CASE)), count)
    assert state.full_passes.tolist() == [1, 1] and state.steps.tolist() == [8, 8]
    assert (state.block - state.origin).tolist() == [8, 8]


def test_shares():
    fast = machine.Machine(100.0, "", 10.0, 0, 0, 1, 20.0)
    by_bytes = floor_shares.shares(Work(flops=100, bytes=50), fast, 10.0)
    assert by_bytes == {
        "floor_s": 5.0,
        "bound": "bytes",
        "share": 0.5,
        "of_copy": 0.5,
        "of_read": 0.25,
        "of_matrices": 0.1,
    }
    assert floor_shares.shares(Work(flops=1000, bytes=50), fast, 20.0)["bound"] == "FLOPs"


def test_cases():
    cases = pass_timing.parse_cases("dual:1,none:16", (512, 256, 32), 4)
    assert cases[1] == Case("none", 16, 512, 256, 32, 4)
    for wrong in ("dual", "prefix:1", "dual:0", "dual:x", ""):
        with pytest.raises(ValueError, match="is not none:ROWS"):
            pass_timing.parse_cases(wrong, (512, 256, 32), 4)


def test_accelerators_are_measured():
    """The same code runs on any device; on this one the numbers mean nothing."""
    assert machine.copy_bandwidth(2**20, 1, 2)[0] > 0
    assert machine.read_bandwidth(2**20, 1, 2)[0] > 0
    seconds = functools.partial(machine.queued_seconds, repeats=2, queue=2)
    rates, by = machine.matrix_rates(jnp.bfloat16, (32, 64), seconds, max)
    assert len(rates) == 2 and min(rates) > 0
    assert by.startswith("XLA") and by.endswith("bfloat16")


def test_the_square_with_the_best_rate_counts():
    """Seconds by size: the smaller square has one slow repetition and one quick one."""
    seconds = iter([[1.0, 1e-3], [0.5, 0.5]])
    rates, by = machine.matrix_rates("float32", (2, 4), lambda run: next(seconds), max)
    assert rates == [16.0, 16e3] and "2 x 2" in by
    seconds = iter([[1.0, 1e-3], [0.5, 0.5]])
    rates, by = machine.matrix_rates("float32", (2, 4), lambda run: next(seconds), min)
    assert rates == [256.0, 256.0] and "4 x 4" in by


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    document, kept = tmp_path / "page.md", tmp_path / "floor.json"
    words = ["--floor", "dual:1", "--quick", "--repeats", "1", "--block-length", "8"]
    words += ["--gen-length", "16", "--weights", "stacked,layers", "--write", str(document)]
    assert main([*words, "--json", str(kept)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| dual, 1 | stacked | window |") == 1
    assert shown.count("| dual, 1 | layers | full |") == 1
    assert "its numbers mean nothing" in document.read_text()
    (model,) = json.loads(kept.read_text())["models"].values()
    for row in model["rows"]:
        assert row["tokens_per_s"] > 0 and 0 < row["shares"]["pass"]["share"]
        assert row["outside"]["n"] == 1


@pytest.mark.slow
def test_what_cannot_be_compiled_is_said_and_the_rest_goes_on(monkeypatch, capsys):
    compiled, left = floor_shares.Compiled, [1]

    def no_room_once(*args):
        if left and left.pop():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")
        return compiled(*args)

    monkeypatch.setattr(floor_shares, "Compiled", no_room_once)
    words = ["--floor", "none:1,none:2", "--quick", "--repeats", "1", "--block-length", "8"]
    assert main([*words, "--gen-length", "16"]) == 1
    shown = capsys.readouterr().out
    assert "RESOURCE_EXHAUSTED" in shown and "| none, 2 | stacked | full |" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--floor", "dual"], "is not none:ROWS or dual:ROWS"),
        (["--floor", "--weights", "upside-down"], "choose of stacked, layers"),
        (["--floor", "--against", "torch"], "--against and --floor are runs of their own"),
        (["--weights", "layers"], "--weights goes with --floor"),
        (["--write", "x"], "--write goes with --against or --floor"),
        (["--floor", "--caches", "dual"], "--floor does not go with --caches"),
    ],
)
def test_bad_input(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err
