"""Options in force: the same from Python, the command line, studies, the harness and Ray."""

import argparse
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import leapjax
from leapjax import DecodeConfig, UserError
from leapjax.config.resolve import checkpoint_options, resolve
from leapjax.likelihood import likelihoods
from leapjax.loader import model_config
from leapjax.options import read_config

GOLDEN = Path(__file__).parent / "golden" / "llada-a"
TASK = SimpleNamespace(gen_length=256, block_length=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A hub folder that brings options along."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    shutil.copytree(GOLDEN, folder)
    (folder / "decode.yaml").write_text("gen_length: 16\nblock_length: 8\nlogits_eos_inf: on\n")
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    return leapjax.load(folder)


# Ten levels of ten: written out, a message would be longer than the memory.
BOMB = (
    "top_k: [&x0 [1]"
    + "".join(f", &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 11))
    + "]\n"
)
MODEL = model_config(GOLDEN)
OWN = DecodeConfig(gen_length=16, block_length=8, logits_eos_inf=True).for_model(MODEL)


def test_python_goes_by_the_checkpoint(lm):
    assert lm.default_config == OWN == lm.request("a").config
    (answer,) = lm.generate("Tom has 2 pens.", policy="greedy")
    assert len(answer.output_ids) == answer.steps == 16
    assert next(lm.stream(["a"], steps=4, policy="low-confidence")).steps == 4
    assert lm.batch("a", threshold=0.8).requests[0].config == OWN.replace(threshold=0.8)
    open_ids = [lm.config.mask_token_id] * 3
    assert lm.infill([open_ids], policy="greedy")[0].steps == 3
    # A config is complete, and keywords go over it.
    config = DecodeConfig(gen_length=32).for_model(MODEL)
    assert lm.request("a", config).config == config
    assert lm.request("a", config, seed=3).config == config.replace(seed=3)
    # Canvas and block go together.
    longer = DecodeConfig(gen_length=64, logits_eos_inf=True).for_model(MODEL)
    assert lm.request("a", gen_length=64).config == longer
    counted = lm.with_token_counts([1] * lm.config.vocab_size)
    assert counted.default_config == OWN


def test_every_command_goes_by_the_same(folder, lm, monkeypatch):
    from leapjax.cli import ablate, analyze, calibrate, decode, evaluate
    from leapjax.terminal import show

    class Seen(Exception):
        pass

    def see(config):
        raise Seen(config)

    def asked(call):
        with pytest.raises(Seen) as e:
            call()
        return e.value.args[0]

    def args(module, *argv):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        return parser.parse_args(["--model", str(folder), *argv])

    monkeypatch.setattr(show, "run", lambda args, config, model: see(config))
    assert asked(lambda: decode.run(args(decode, "--chat"))) == OWN
    seeded = asked(lambda: decode.run(args(decode, "--chat", "--seed", "4")))
    assert seeded == OWN.replace(seed=4)
    monkeypatch.setattr(evaluate, "load_model", lambda args, prog, model, config, size: see(config))
    greedy = OWN.replace(policy="low_confidence")
    assert asked(lambda: evaluate.run(args(evaluate, "--limit", "2"))) == greedy
    monkeypatch.setattr(ablate, "ablate", lambda *given: see(given[3]))
    ablated = args(ablate, "--grid", "threshold=0.8,0.9", "--limit", "2")
    assert asked(lambda: ablate.run(ablated)) == OWN
    analyzed = analyze.configs(args(analyze, "--output", "x", "--policies", "threshold"))
    assert analyzed == {"threshold": OWN.replace(policy="confidence_threshold")}
    given = args(calibrate, "--output", "x", "--task", "wordproblems")
    assert calibrate._base(given, None, str(folder), TASK) == OWN


def test_the_harness_and_ray_go_by_the_same(folder, lm):
    pytest.importorskip("lm_eval", reason="needs lm-eval (extra eval)")
    pytest.importorskip("ray", reason="needs ray (extra ray)")
    from leapjax.integrations.lm_eval import LeapjaxLM
    from leapjax.integrations.ray import Decoder

    assert LeapjaxLM(lm=lm).options == OWN == Decoder(str(folder), mesh="data=1").options
    assert LeapjaxLM(lm=lm, seed=2).options == OWN.replace(seed=0)  # seed is the masks'


def test_the_order_of_the_levels(tmp_path, folder):
    (tmp_path / "c.yaml").write_text("seed: 3\nearly_stop: off\n")
    file, own = read_config(tmp_path / "c.yaml"), checkpoint_options(folder)

    def shape():
        return MODEL

    config = resolve({"seed": 4}, file, own, TASK, model=shape)
    assert config == OWN.replace(seed=4, early_stop=False)
    assert resolve({}, file, None, TASK).gen_length == 256
    assert resolve({"gen_length": 64}, None, own, TASK, model=shape).block_length == 32
    with pytest.raises(UserError, match="^block_length 32 does not divide gen_length 48"):
        resolve({"gen_length": 48}, file, own, TASK, model=shape)


@pytest.mark.parametrize(
    "text, message",
    [
        ("threshold: 0.5\n", "threshold does not belong here"),
        ("policy: greedy\n", "policy does not belong here"),
        ("model: /etc\n", "model does not belong here"),
        ("gen_length: 48\n", "block_length 32 does not divide gen_length 48"),
        ("gen_length: 064\n", "gen_length is '064'; expected a whole number"),
        ("cache: off\n", "cache is False; expected one of none, prefix, dual"),
        ("- 1\n", "expected option names and values"),
        ("seed: 1\nseed: 2\n", "key 'seed' occurs twice"),
        ("temperature: 1" + "0" * 400 + "\n", "expected a smaller number"),
        (BOMB, "top_k is .*; expected a whole number"),
    ],
)
def test_a_checkpoints_file_is_not_trusted(tmp_path, text, message):
    folder = tmp_path / "m"
    shutil.copytree(GOLDEN, folder)
    (folder / "decode.yaml").write_text(text)
    for call in (lambda path: checkpoint_options(path, MODEL), leapjax.load):
        with pytest.raises(UserError, match=message) as e:
            call(folder)
        assert str(folder / "decode.yaml") in str(e.value) and "\n" not in str(e.value)
        assert len(str(e.value)) < 2000


def test_models_without_a_file(tmp_path, monkeypatch):
    assert checkpoint_options(tmp_path).options == {} == checkpoint_options("org/name").options
    monkeypatch.setattr("leapjax.loader.embedded_path", lambda: tmp_path / "none")
    assert checkpoint_options(None).options == {"gen_length": 64, "block_length": 32}


def test_what_is_no_config(lm):
    for call, message in (
        (lambda: DecodeConfig(radus=2), "unknown option 'radus'; did you mean 'radius'"),
        (lambda: DecodeConfig({"radius": 2}), "give options by name"),
        (lambda: DecodeConfig(parameters=2), "unknown option 'parameters'"),
        (lambda: lm.generate("a", {"threshold": 0.5}), r"DecodeConfig\(threshold=0.5\)"),
        (lambda: lm.generate("a", {"treshold": 0.5}), "did you mean 'threshold'"),
        (lambda: lm.generate("a", "greedy"), "config is 'greedy'; expected a leapjax.DecodeConfig"),
        (lambda: lm.generate("a", treshold=0.5), "did you mean 'threshold'"),
        (lambda: lm.stream(["a"], batchsize=2), "did you mean 'batch_size'"),
        (lambda: lm.infill([[1.5]]), "infill_ids.0. is 1.5"),
        (lambda: lm.infill([[1]], stop=["a"]), "unknown argument 'stop'"),
        (lambda: lm.generate(None), "prompts is None; expected a text"),
        (lambda: lm.generate(b"ab"), "prompts is b'ab'; expected a text"),
        (lambda: lm.infill(7), "sequences is 7"),
        (lambda: lm.infill(["ab"]), r"infill holds no \[MASK\]"),
        (lambda: lm.stream(7), "requests is 7"),
        (lambda: lm.generate("a", batch_size=0), "batch_size is 0; expected a whole number of at"),
        (lambda: lm.generate("a", batch_size="a"), "batch_size is 'a'"),
        (lambda: lm.generate("a", stop=3), "stop should be a text or a list of texts"),
        (lambda: lm.generate("a", raw="yes"), "raw is 'yes'; expected True or False"),
        (lambda: lm.generate([{"id": 2, "prompt": "a"}, "b"]), "id '2' occurs twice"),
        (lambda: lm.batch([]), "prompts is empty"),
        (lambda: DecodeConfig(threshold=10**400), "expected a smaller number"),
        (lambda: DecodeConfig(seed=10**5000), "seed is a number with thousands of digits"),
        (lambda: DecodeConfig(cfg_scale=1e300), "cfg_scale is 1e.300; expected at most"),
        (lambda: DecodeConfig(temperature=1e300), "temperature is 1e.300; expected at most"),
        (lambda: DecodeConfig(temperature=1, top_p=1e-60), "top_p is 1e-60; expected more than 0"),
        (lambda: lm.request({"id": 10**5000, "prompt": "a"}), "id is a number of more than 300"),
        (lambda: lm.stream(["a"], refresh_group="a"), "refresh_group is 'a'"),
        (lambda: likelihoods(lm, [([1], [2])], samples="a"), "samples is 'a'"),
        (lambda: likelihoods(lm, [([1], [2])], seed=-1), "seed is -1"),
        (lambda: leapjax.load(3), "path is 3; expected"),
        (lambda: leapjax.load(GOLDEN, mesh=3), "mesh is 3; expected"),
        (lambda: DecodeConfig(radius=1, radius_left=0, radius_right=2), "radius is set, but"),
    ):
        with pytest.raises(UserError, match=message) as e:
            call()
        assert "\n" not in str(e.value)
    # A text that is one stop string is one, not a list of letters.
    assert lm.request("a", stop="end").stop == ("end",)


def test_a_keyword_threshold_takes_the_lower_one_along(lm):
    with pytest.warns(
        UserWarning, match="relaxed_threshold is lowered from its default 0.75 to 0.5"
    ):
        config = lm.request("a", threshold=0.5).config
    assert config == OWN.replace(threshold=0.5, relaxed_threshold=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lm.request("a", threshold=0.5, policy="threshold").config.threshold == 0.5
        with pytest.raises(UserError, match="relaxed_threshold 0.7 is above"):
            lm.request("a", threshold=0.5, relaxed_threshold=0.7)
    with pytest.warns(UserWarning, match="radius is ignored, policy threshold"):
        made = lm.request("a", DecodeConfig(radius=2, seed=5), policy="threshold").config
    assert made == DecodeConfig(policy="confidence_threshold", seed=5).for_model(MODEL)


def test_what_is_printed_is_short(lm, folder):
    size = sum(x.size for x in jax.tree.leaves(lm.params)) / 1000
    assert repr(lm) == (
        f"LM(llada, {size:.1f} k parameters, float32, vocabulary {lm.config.vocab_size}, "
        f"from {folder})"
    )
    (answer,) = lm.generate("a", policy="greedy")
    assert repr(answer).startswith("Completion(id=1, text=") and len(repr(answer)) < 150
    assert "steps=16, finish_reason=" in repr(answer)
    assert repr(OWN.replace(policy="greedy")) == (
        "DecodeConfig(policy='low_confidence', gen_length=16, block_length=8, logits_eos_inf=True)"
    )
