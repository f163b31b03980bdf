"""Flags, YAML and defaults: names, precedence, messages."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from leapjax.cli.common import Parser
from leapjax.config import OPTIONS, DecodeConfig, row_config
from leapjax.config.resolve import resolve
from leapjax.errors import UserError
from leapjax.options import add_option_flags, read_config, set_flags
from leapjax.testing import tiny_config

CONFIGS = Path(__file__).parents[1] / "configs"


def flags(*argv):
    parser = Parser(prog="p")
    add_option_flags(parser)
    return set_flags(parser.parse_args(argv))


def yaml_file(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return read_config(path)


def test_every_field_is_a_flag():
    assert flags() == {}
    parser = argparse.ArgumentParser()
    add_option_flags(parser)
    names = {a.dest for a in parser._actions} - {"help"}
    assert names == set(OPTIONS)


@pytest.mark.parametrize(
    "argv, stop",
    [
        (["--early-stop"], "block"),
        (["--no-early-stop"], "off"),
        (["--early-stop", "--seed", "1"], "block"),
        (["--early-stop", "on-eos"], "on_eos"),
        (["--early-stop", "settled"], "settled"),
        (["--early-stop", "on"], "block"),
    ],
)
def test_early_stop_is_a_switch_and_a_word(argv, stop):
    assert resolve(flags(*argv)).early_stop == stop
    assert DecodeConfig(early_stop=stop).early_stop == stop
    assert row_config(DecodeConfig(), {"early_stop": stop}, "line 1").early_stop == stop


def test_early_stop_was_a_switch(tmp_path):
    for text, stop in (("on", "block"), ("off", "off"), ("true", "block"), ("on_eos", "on_eos")):
        assert resolve({}, yaml_file(tmp_path, f"early_stop: {text}\n")).early_stop == stop
    assert DecodeConfig(early_stop=True) == DecodeConfig() != DecodeConfig(early_stop=False)
    assert row_config(DecodeConfig(), {"early_stop": False}, "line 1").early_stop == "off"


def test_stop_ids_are_a_list(tmp_path):
    for text in ("7,5", "7 5", "7, 5"):
        assert resolve(flags("--stop-ids", text)).stop_ids == (7, 5)
    assert resolve({}, yaml_file(tmp_path, "stop_ids: [7, 5, 7]\n")).stop_ids == (7, 5)
    assert DecodeConfig(stop_ids=7).stop_ids == (7,) and DecodeConfig().stop_ids is None
    assert DecodeConfig(stop_ids=np.array([7, 5])) == DecodeConfig(stop_ids=[7, 5])
    assert DecodeConfig(stop_ids=[7, 5]).to_dict()["stop_ids"] == [7, 5]  # as JSON has it
    job = DecodeConfig(stop_ids=[7, 5])
    assert row_config(job, {"stop_ids": [7, 5]}, "line 1") == job
    with pytest.raises(UserError, match="'stop_ids' is the same for the whole job"):
        row_config(job, {"stop_ids": [7]}, "line 1")


def test_flags_set_what_they_say():
    got = flags(
        *"--threshold 0.95 --radius 2 --no-early-stop --logits-eos-inf --top-k off".split(),
        *"--seed 4 --gen-length 64 --temperature 1e-1".split(),
    )
    assert got == {
        "threshold": 0.95,
        "radius": 2,
        "early_stop": "off",
        "logits_eos_inf": True,
        "top_k": 0,
        "seed": 4,
        "gen_length": 64,
        "temperature": 0.1,
    }
    config = resolve(got)
    assert (config.top_k, config.early_stop, config.threshold) == (None, "off", 0.95)
    assert resolve(flags("--top-k", "5")).top_k == 5


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--threshold", "high"], "argument --threshold: 'high' is not a number"),
        (["--stop-ids", "7,a"], "argument --stop-ids: 'a' is not a whole number"),
        (["--radius", "1.5"], "argument --radius: '1.5' is not a whole number"),
        (["--thresh", "0.5"], "unrecognized arguments: --thresh"),
    ],
)
def test_flags_that_are_not_understood(argv, message, capsys):
    with pytest.raises(SystemExit) as e:
        flags(*argv)
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "given, message",
    [
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"threshold": 0.5}, "relaxed_threshold 0.75 is above threshold 0.5"),
        ({"policy": "localeap"}, "did you mean 'localleap'"),
        ({"steps": 8}, "policy localleap does not read it"),
        ({"gen_length": 100}, "block_length 32 does not divide"),
        ({"factor": 1.0}, "policy localleap does not read it"),
        ({"policy": "factor", "factor": 0}, "factor is 0.0; expected more than 0"),
        ({"policy": "entropy_bound", "entropy_bound": -1}, "expected at least 0"),
        ({"policy": "hierarchy", "low_threshold": 1.5}, "a number between 0 and 1"),
        ({"policy": "hierarchy", "low_threshold": 0.95}, "low_threshold 0.95 is above threshold"),
        ({"policy": "certainty_prior", "sigma": 0}, "expected a number between 0.1 and 100"),
        ({"policy": "certainty_prior", "sigma": 1e9}, "a number between 0.1 and 100"),
        ({"policy": "wino", "cache": "dual"}, "policy wino reads the whole sequence"),
        ({"early_stop": "sometimes"}, "early_stop is 'sometimes'; did you mean 'settled'. choose"),
        ({"early_stop": 1}, "early_stop is 1; expected one of off, block, settled, on_eos"),
        ({"stop_ids": []}, "stop_ids is ..; expected a list of token ids"),
        ({"stop_ids": "7,5"}, "stop_ids is '7,5'; expected a list of token ids"),
        ({"stop_ids": [7, -1]}, "stop_ids is -1; expected at least 0"),
        ({"stop_ids": [7, 1.5]}, "stop_ids is .7, 1.5.; expected a list of token ids"),
        ({"stop_ids": [40]}, "stop_ids holds 40, outside the vocabulary of 40"),
        ({"policy": "klass", "kl_history": 0}, "kl_history is 0; expected at least 1"),
        ({"policy": "klass", "kl_history": 1.5}, "expected a whole number"),
        ({"policy": "slowfast", "explore_steps": 2**31}, "expected at most"),
        ({"policy": "credit", "credit_decay": 1.1}, "a number between 0 and 1"),
        ({"policy": "position_calibration", "surprise_cap": 0.0}, "expected more than 0"),
    ],
)
def test_values_that_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        resolve(given, model=tiny_config)


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    file = yaml_file(tmp_path, "threshold: 0.8\nradius: 2\ntop_k: off\nearly_stop: off\n")
    config = resolve({"threshold": 0.95}, file, model=tiny_config)
    assert (config.threshold, config.radius, config.block_length) == (0.95, 2, 32)
    assert (config.top_k, config.early_stop) == (None, "off")
    assert resolve({"early_stop": True}, file).early_stop == "block"


def test_numbers_as_people_write_them(tmp_path):
    file = yaml_file(tmp_path, "threshold: 9e-1\nrelaxed_threshold: 5E-1\nseed: 3\n")
    assert file.options == {"threshold": 0.9, "relaxed_threshold": 0.5, "seed": 3}


def test_another_policy_drops_the_files_own_fields(tmp_path):
    file = yaml_file(tmp_path, "threshold: 0.8\nrelaxed_threshold: 0.5\nseed: 3\n")
    notes = []
    config = resolve({"policy": "confidence_threshold"}, file, warn=notes.append)
    assert (config.threshold, config.relaxed_threshold, config.seed) == (0.8, None, 3)
    assert len(notes) == 1 and "relaxed_threshold is ignored" in notes[0]
    # The file's own contradiction is not a change of policy: it is refused.
    bad = yaml_file(tmp_path, "policy: low_confidence\nradius: 2\n")
    for given in ({}, {"policy": "low_confidence"}):
        with pytest.raises(UserError, match=r"c.yaml: radius is set, but policy low_confidence"):
            resolve(given, bad)
    # And so is a flag that the chosen policy does not read.
    with pytest.raises(UserError, match="^radius is set"):
        resolve({"policy": "margin", "radius": 1}, file)


@pytest.mark.parametrize(
    "text, message",
    [
        ("treshold: 0.9", "unknown key 'treshold'; did you mean 'threshold'"),
        ("__class__: 1", r"unknown key '__class__'; known: policy, .{100,300} and \d+ more$"),
        ("- 1", "expected option names and values"),
        ("a: [", "c.yaml line 1: not valid YAML"),
        ("seed: 1\nradius: 2\nseed: 3", "c.yaml line 3: .*key 'seed' occurs twice"),
        ("1: 2", "key 1 is not a word"),
        ("model: [a]", "model is"),
        ("x: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("seed: 2020-99-99", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as e:
        yaml_file(tmp_path, text)
    assert "\n" not in str(e.value)
    assert str(tmp_path) in str(e.value)


def test_bad_values_name_the_file(tmp_path):
    for text in ("threshold: [1]", "gen_length:", "steps: 8", "threshold: high"):
        with pytest.raises(UserError, match="c.yaml: "):
            resolve({}, yaml_file(tmp_path, text))


def test_unreadable(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    with pytest.raises(UserError, match="can't be read"):
        read_config(tmp_path / "b.yaml")


DECODE = [p for p in sorted(CONFIGS.glob("*.yaml")) if not p.stem.startswith("train-")]


@pytest.mark.parametrize("path", DECODE, ids=lambda p: p.stem)
def test_shipped_files(path):
    text = path.read_text()
    if "policy" not in text and "model" not in text:
        pytest.skip("not a file of decode options")
    file = read_config(path)
    config = resolve({}, file)
    for name, value in file.options.items():
        default = getattr(DecodeConfig(), name)
        assert value != default, f"{name} is the default; leave it out"
    assert config.policy == file.options.get("policy", "localleap")
