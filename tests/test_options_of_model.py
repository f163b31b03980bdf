"""Options for a model: its own defaults, and what goes with it."""

import dataclasses
import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from leapjax.config import DecodeConfig, row_config
from leapjax.config.resolve import resolve
from leapjax.errors import UserError
from leapjax.options import ConfigFile
from leapjax.policies import POLICIES, ROWS
from leapjax.records import to_request
from leapjax.studies.policy_rows import rows
from leapjax.testing import tiny_config
from leapjax.types import Request

GOLDEN = Path(__file__).parent / "golden"
LLADA = tiny_config()
SDAR = tiny_config("sdar").with_block_length(4)
FAST = tiny_config("fast_dllm_v2").with_block_length(32)


def test_a_model_fills_in_its_own_defaults():
    unknown = DecodeConfig(gen_length=64)
    assert (unknown.block_length, unknown.cache, unknown.model) == (None, None, None)
    made = unknown.for_model(LLADA)
    assert (made.block_length, made.blocks, made.cache) == (32, 2, "none")
    assert made.for_model(LLADA) is made and unknown.changed() == made.changed()
    own = unknown.for_model(SDAR)
    assert (own.block_length, own.cache) == (4, "block")
    # What was filled in belongs to the model, what was given does not.
    assert made.for_model(SDAR) == own
    given = DecodeConfig(block_length=8, cache="none").for_model(SDAR)
    assert (given.block_length, given.cache) == (8, "none") and given.for_model(LLADA).blocks == 32
    assert DecodeConfig(policy="wino").for_model(SDAR).cache == "none"
    assert own.replace(policy="wino").cache == "none" and own.replace(seed=3).cache == "block"


@pytest.mark.parametrize("policy", [*POLICIES, *ROWS])
@pytest.mark.parametrize("model", [LLADA, SDAR, FAST], ids=lambda model: model.family)
def test_what_is_in_force_spells_the_same_decode(model, policy):
    made = DecodeConfig(policy=policy, gen_length=64).for_model(model)
    spelled = {name: value for name, value in made.to_dict().items() if value is not None}
    if "radius_left" in spelled:
        del spelled["radius"]  # nothing would follow it
    assert DecodeConfig(**spelled).for_model(model).to_dict() == made.to_dict()
    assert row_config(made, spelled, "line 1").to_dict() == made.to_dict()
    assert made == DecodeConfig(**dict(made.given)).for_model(model) == made.replace()


def test_copies_stay_complete():
    made = DecodeConfig(threshold=0.8, seed=2).for_model(SDAR)
    for copy in (made.replace(seed=5), dataclasses.replace(made, seed=5)):
        assert copy == DecodeConfig(threshold=0.8, seed=5).for_model(SDAR)
        assert copy.model is SDAR and copy.threshold == 0.8
    unknown = dataclasses.replace(DecodeConfig(policy="schedule-2"), gen_length=64)
    assert unknown == DecodeConfig(policy="schedule-2", gen_length=64) and unknown.model is None
    with pytest.raises(UserError, match="block_length 32 does not divide gen_length 48; choose"):
        DecodeConfig().for_model(LLADA).replace(gen_length=48)
    # A hand-made request gets complete options too.
    request = Request(id=1, ids=(1, 2), config=DecodeConfig(seed=3))
    got = to_request(request, job=DecodeConfig(), model=SDAR, codec=None)
    assert got.config.block_length == 4 and got.config.seed == 3


@pytest.mark.parametrize(
    "model, options, message",
    [
        (LLADA, {"gen_length": 100}, "^block_length 32 does not divide gen_length 100; choose a"),
        (LLADA, {"policy": "margin", "gen_length": 1}, "^block_length 32 does not divide gen_len"),
        (LLADA, {"policy": "margin", "steps": 12}, "^steps 12 is not a multiple of the 8 blocks"),
        (LLADA, {"policy": "margin", "schedule": "dream"}, "^schedule dream runs over the whole"),
        (LLADA, {"policy": "margin", "steps_per_block": 4}, "^steps_per_block is 4.*; set steps,"),
        (SDAR, {"policy": "margin", "steps": 8}, "^steps is 8.*; set steps_per_block"),
        (SDAR, {"policy": "margin", "schedule": "dream"}, "^schedule is dream.*steps_per_block"),
        (SDAR, {"cache": "dual"}, "^cache is dual, but the model's attention is block_causal"),
        (SDAR, {"cache": "prefix"}, "^cache is prefix, but"),
        (LLADA, {"cache": "block"}, "^cache is block, but the model.s attention is bidirectional"),
        (SDAR, {"policy": "schedule-2", "steps_per_block": 4}, "with steps_per_block 2; remove"),
        (SDAR, {"policy": "greedy", "schedule": "dream"}, "policy greedy is low_confidence with"),
        (LLADA, {"policy": "greedy", "steps": 8}, "policy greedy is low_confidence with steps 256"),
        (SDAR, {"sub_block_length": 2}, "^sub_block_length is 2, but the model's blocks have no"),
        (LLADA, {"sub_block_cache": True}, "^sub_block_cache is True, but the model's blocks"),
        (FAST, {"sub_block_length": 12}, "^sub_block_length 12 does not divide block_length 32; "),
        (FAST, {"sub_block_cache": True, "cache": "none"}, "^sub_block_cache is on, but cache is"),
        (LLADA, {"stop_ids": [1, 99]}, "^stop_ids holds 99, outside the vocabulary of 40"),
        (FAST, {"gen_length": 31}, "^gen_length is 31, less than a block of 32.*; raise gen_le"),
    ],
)
def test_what_a_model_does_not_take(model, options, message):
    config = DecodeConfig(**options)
    with pytest.raises(UserError, match=message) as e:
        config.for_model(model)
    assert "\n" not in str(e.value)


def test_a_block_causal_models_block_need_not_divide_the_canvas():
    assert DecodeConfig(gen_length=30).for_model(SDAR).gen_length == 30
    assert DecodeConfig(gen_length=33).for_model(FAST).gen_length == 33


def test_what_ends_an_answer_and_where_policies_decide():
    assert DecodeConfig().for_model(LLADA).stop_ids == (LLADA.eos_token_id,)
    assert DecodeConfig().for_model(SDAR).stop_ids == SDAR.stop_ids
    other = DecodeConfig(stop_ids=[3]).for_model(SDAR)
    assert (other.stop_ids, other.end_ids) == ((3,), (3, SDAR.eos_token_id))
    for block, sub in ((None, 4), (2, 2), (8, 4)):
        assert DecodeConfig(block_length=block).for_model(FAST).sub_block_length == sub
    assert DecodeConfig(sub_block_length=16).for_model(FAST).sub_block_length == 16
    assert DecodeConfig().for_model(SDAR).sub_block_length is None
    with pytest.raises(UserError, match="^sub_block_length 4 does not divide block_length 6"):
        DecodeConfig(block_length=6).for_model(FAST)


@pytest.mark.parametrize(
    "family, block, prompt, fits, total",
    [("llada", 1, 500, 12, 513), ("sdar", 6, 500, 10, 516), ("fast_dllm_v2", 32, 400, 128, 544)],
)
def test_prompt_and_canvas_fit_the_model(family, block, prompt, fits, total):
    """A canvas that ends with a block may be longer than gen_length, or shorter."""
    model = tiny_config(family)  # takes 512 positions

    def ask(gen):
        job = DecodeConfig(gen_length=gen, block_length=block)
        return to_request([1] * prompt, job=job, model=model, codec=None)

    more = 1 if model.canvas != "whole_blocks" else block
    assert ask(fits).config.gen_length == fits
    message = f"gen_length {fits + more} that is {total}; the model takes 512.* at most {fits}$"
    with pytest.raises(UserError, match=message):
        ask(fits + more)


def test_schedules_count_passes_where_the_model_does():
    base = DecodeConfig(policy="entropy", gen_length=64)
    whole, block = base.for_model(LLADA), base.for_model(SDAR)
    assert (whole.value("steps"), whole.value("steps_per_block")) == (64, None)
    assert (block.value("steps"), block.value("steps_per_block")) == (None, 4)
    assert whole.tokens_per_step == block.tokens_per_step == base.tokens_per_step == 1
    assert "steps_per_block" not in whole.to_dict() and "steps" not in block.to_dict()
    assert block.replace(steps_per_block=3).tokens_per_step == 4 / 3
    assert DecodeConfig().tokens_per_step is None


@pytest.mark.parametrize("tokens, passes", [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_named_schedules_of_a_block_causal_model(tokens, passes):
    name = "greedy" if tokens == 1 else f"schedule-{tokens}"
    made = DecodeConfig(policy=name, gen_length=30).for_model(SDAR)
    assert made.policy == "low_confidence" and made.value("steps_per_block") == passes
    spelled = DecodeConfig(policy="low_confidence", gen_length=30, steps_per_block=passes)
    assert spelled.for_model(SDAR).to_dict() == made.to_dict()
    assert row_config(made, {"policy": name}, "line 1") == made
    assert rows([name], ["none"], DecodeConfig().for_model(SDAR))[-1].config.policy == made.policy
    unknown = DecodeConfig(policy=name)
    assert unknown.tokens_per_step == tokens
    assert DecodeConfig(**unknown.changed()) == unknown


def test_the_levels_of_a_block_causal_model():
    notes, task = [], SimpleNamespace(gen_length=64, block_length=32)
    own = ConfigFile("decode.yaml", {"block_length": 8})
    how = {"warn": notes.append, "model": lambda: SDAR}
    # A task chooses no block; the canvas does not displace the checkpoint's.
    assert resolve({}, None, None, task, **how).block_length == 4 and not notes
    made = resolve({"gen_length": 30}, None, own, task, **how)
    assert (made.gen_length, made.block_length) == (30, 8)
    assert notes == ["block_length is 8; the model was trained with 4"]
    with pytest.raises(UserError, match="^c.yaml: steps is 8"):
        file = ConfigFile("c.yaml", {"policy": "margin", "steps": 8})
        resolve({}, file, None, task, **how)


@pytest.mark.parametrize(
    "module, argv, message",
    [
        ("decode", ["--prompt", "a", "--policy", "margin", "--steps", "8"], "steps is 8"),
        ("decode", ["--prompt", "a", "--cache", "dual"], "cache is dual"),
        ("decode", ["--prompt", "a", "--stop-ids", "9999"], "stop_ids holds 9999, outside"),
        ("evaluate", ["--caches", "dual"], "cache is dual"),
        ("analyze", ["--output", "x"], "--policies greedy: the model is block-causal"),
        ("ablate", ["--grid", "cache=prefix"], "--grid: cache is prefix"),
        ("calibrate", ["--output", "x", "--cache", "dual", "--task", "wordproblems"], "cache is"),
    ],
)
def test_commands_say_it_before_weights_are_loaded(tmp_path, capsys, module, argv, message):
    """The folder holds none."""
    folder = tmp_path / "sdar"
    shutil.copytree(GOLDEN / "sdar-a", folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    command = importlib.import_module(f"leapjax.cli.{module}")
    assert command.main(["--model", str(folder), *argv]) == 2
    said = capsys.readouterr().err
    assert f"error: {message}" in said and said.count("\n") == 1
