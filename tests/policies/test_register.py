"""A policy of one's own: registered, it is an option like those that come with leapjax."""

import argparse
import dataclasses
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig, UserError
from leapjax.cli import help_policies
from leapjax.cli.main import main
from leapjax.config import OPTIONS
from leapjax.config.resolve import resolve
from leapjax.jobs import job
from leapjax.jobs.job import JobSpec
from leapjax.options import add_option_flags, read_config, set_flags
from leapjax.policies import ROWS, Parameter, Policy, commits
from leapjax.policies.base import surest
from leapjax.policies.names import row_names
from leapjax.policies.parameters import THRESHOLD
from leapjax.testing import tiny_config, tiny_params
from leapjax.trace.collect import describe
from leapjax.types import ANCHOR, TOP1
from tests.jobs.fakes import FakeLM, write_input

SMALL = {"gen_length": 8, "block_length": 4}
FULL = SMALL | {"early_stop": False}


def commit(proposal, masked, info):
    """At least `share` of the surest one's confidence; `strict` is `>`."""
    p = info.parameters
    top = jnp.max(jnp.where(masked, proposal.confidence, 0.0), axis=1, keepdims=True)
    least = p["share"][:, None] * top
    near = proposal.confidence > least if p["style"] == "strict" else proposal.confidence >= least
    near = masked & near & p["brave"][:, None]
    return commits(near | surest(proposal.confidence, masked), jnp.where(near, ANCHOR, TOP1))


def no_equals(config):
    if config.value("share") == config.value("threshold"):
        raise UserError("share and threshold are equal; change one")


MINE = Policy(
    name="mine",
    source="a test",
    commit=commit,
    parameters=(
        THRESHOLD.with_default(0.8),
        Parameter("share", float, "of the surest", 0.5, low=0, high=1, at_most="threshold"),
        Parameter("few", int, "not read by the rule", follows="block_length", low=1),
        Parameter("brave", bool, "more than one at once", True),
        Parameter("style", str, "of comparing", "loose", choices=("loose", "strict"), traced=False),
    ),
    check=no_equals,
)


@pytest.fixture(autouse=True)
def registered(registry):
    assert leapjax.register_policy(MINE) is leapjax.register_policy(MINE)


@pytest.fixture(scope="module")
def lm():
    config = tiny_config("llada")
    return leapjax.LM(tiny_params(config), config, codec=None)


def test_a_config_takes_its_parameters():
    config = DecodeConfig(policy="Mine", share=0.3, **SMALL)
    assert (config.share, config.few, config.radius) == (0.3, None, None)
    want = {"threshold": 0.8, "share": 0.3, "few": 4, "brave": True, "style": "loose"}
    assert {n: config.value(n) for n in want} == want and want.items() <= config.to_dict().items()
    assert "radius" not in config.to_dict() and config.value("radius") is None
    assert repr(config) == "DecodeConfig(policy='mine', share=0.3, gen_length=8, block_length=4)"
    other = dataclasses.replace(config, share=0.2)
    assert other == config.replace(share=np.float32(0.25), brave=None).replace(share=0.2)
    assert other != config and len({config, other, config.replace(share=0.3)}) == 2
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.replace(policy="threshold", share=None).policy == "confidence_threshold"


def test_the_constructor_and_tab_completion_show_it():
    shown = inspect.signature(DecodeConfig).parameters
    assert list(shown) == list(OPTIONS) and shown["share"].default is None
    assert shown["gen_length"].default == 256
    assert {"share", "gen_length"} <= set(dir(DecodeConfig(policy="mine")))
    assert "share" not in dir(DecodeConfig())


def test_flags_files_and_help_know_it(tmp_path):
    parser = argparse.ArgumentParser()
    add_option_flags(parser)
    flags = set_flags(parser.parse_args("--policy mine --share 0.3 --no-brave".split()))
    (tmp_path / "c.yaml").write_text("policy: mine\nshare: 0.3\nbrave: off\n")
    want = DecodeConfig(policy="mine", share=0.3, brave=False)
    assert resolve(flags) == resolve({}, read_config(tmp_path / "c.yaml")) == want
    shown = help_policies.text()
    assert "--few                 not read by the rule (default: block_length)" in shown
    assert row_names(["Mine"], "--policies") == ["mine"] and ROWS["mine"].label == "mine 0.8 0.5 1"
    assert describe(want) == "threshold 0.8, share 0.3, brave 0, style loose"


def test_a_script_that_registers_it_is_the_command_with_it(capsys):
    assert main(["decode", "--policy", "mine", "--share", "2", "--prompt", "a"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("error: share is 2.0; expected a number between 0 and 1\n")
    assert error.count("\n") == 1


def test_rows_decode_by_their_own_numbers(lm):
    ids, options = [3, 1, 4], ({"share": 0.0}, {"share": 0.75}, {"share": 0.0, "brave": False})
    records = [{"prompt_ids": ids, "options": o} for o in options]
    bold, careful, timid = lm.generate(records, policy="mine", **FULL)
    assert bold.steps == 2 < careful.steps < timid.steps == 8
    assert set(timid.commit_kind) == {"top1"} and "anchor" in careful.commit_kind
    # One program for every number, another one for a word.
    batch = lm.batch([ids], policy="mine", style="strict", **FULL)
    assert dict(batch.program.static) == {"style": "strict"}
    again = leapjax.decoding.with_options(batch.state, batch.program, share=jnp.float32(0.1))
    assert again.options.parameters["share"].tolist() == [np.float32(0.1)]


def test_jobs_record_it(tmp_path):
    spec = JobSpec(
        input=write_input(tmp_path / "in.jsonl", 3),
        output=str(tmp_path / "out"),
        options=DecodeConfig(policy="mine", share=0.3, **SMALL),
    )
    job.run(FakeLM(), spec)
    changed = dataclasses.replace(spec, options=spec.options.replace(share=0.4), resume=True)
    with pytest.raises(UserError, match="share was 0.3, now 0.4"):
        job.run(FakeLM(), changed)
    job.run(FakeLM(), dataclasses.replace(changed, options=spec.options))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"share": 1.5}, "^share is 1.5; expected a number between 0 and 1$"),
        ({"share": "high"}, "^share is 'high'; expected a number$"),
        ({"shre": 0.5}, "unknown option 'shre'; did you mean 'share'"),
        ({"few": 0}, "^few is 0; expected at least 1$"),
        ({"few": 2**31}, "^few is 2147483648; expected at most 2147483647$"),
        ({"brave": 1}, "^brave is 1; expected true or false$"),
        ({"style": "lose"}, "^style is 'lose'; did you mean 'loose'"),
        ({"share": 0.9}, "^share 0.9 is above threshold 0.8; lower share or raise threshold$"),
        ({"share": 0.8}, "^share and threshold are equal; change one$"),
        ({"radius": 3}, r"policy mine does not read it \(it reads: threshold, share, few"),
        ({"policy": "localleap", "share": 0.5}, "^share is set, but policy localleap does not"),
    ],
)
def test_a_wrong_value_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as e:
        DecodeConfig(**{"policy": "mine"} | options)
    assert "\n" not in str(e.value)


def test_a_wrong_record_names_its_line(lm):
    for options, message in (
        ({"share": 2}, "share is 2.0; expected a number between 0 and 1"),
        ({"style": "strict"}, "option 'style' is the same for the whole job; set it with --style"),
    ):
        record = {"prompt_ids": [1], "options": options}
        with pytest.raises(UserError, match=f"record 1.*{message}"):
            lm.generate([record], policy="mine", **SMALL)


def other(*parameters, **changes):
    fields = {"name": "other", "parameters": parameters} | changes
    return dataclasses.replace(MINE, **fields)


@pytest.mark.parametrize(
    "policy, message",
    [
        (dataclasses.replace(MINE, source="elsewhere"), "'mine' is the name of another policy"),
        (other(name="wino"), "'wino' is the name of another policy"),
        (other(name="greedy"), "'greedy' is the name of another policy"),
        (other(rows=(("Schedule 2", 0, "x"),)), "'Schedule 2' is the name of another policy"),
        (other(name="My Policy"), "lowercase letters"),
        (other(needs=frozenset({"entropie"})), "needs entropie; a proposal has token, confidence"),
        (other(Parameter("share", int, "", 1)), "kind is .*int.*, but another policy declares"),
        (other(Parameter("share", float, "", 1.0, traced=False)), "traced is False, but another"),
        (other(Parameter("seed", int, "", 1)), "'seed' is an option of every decode"),
        (other(Parameter("replace", int, "", 1)), "'replace' is an option of every decode"),
        (other(Parameter("x", float, "")), "'x' has no default"),
        (other(Parameter("x", float, "", 2.0, high=1.0)), "the default of x is 2.0; expected at"),
        (other(Parameter("x", float, "", "a")), "the default of x is 'a'; expected a number"),
        (other(Parameter("x", str, "", "a")), "kind is int, float, bool, or str with choices"),
        (other(Parameter("Big-x", int, "", 1)), "lowercase letters"),
        (other(Parameter("x", int, "", 1, at_most="radius")), "refers to radius, which the policy"),
        (commit, "takes a leapjax.policies.Policy, not <function"),
    ],
)
def test_what_can_not_be_registered_is_one_line(policy, message):
    before = dict(ROWS)
    with pytest.raises(UserError, match=message) as e:
        leapjax.register_policy(policy)
    assert "\n" not in str(e.value) and before == ROWS


def test_its_program_is_that_of_the_same_rule_inside():
    from leapjax.decoding import step
    from tests.decoding.harness import params_of, request, start, structure

    inside = leapjax.policies.POLICIES["localleap"]
    leapjax.register_policy(dataclasses.replace(inside, name="twin", label="twin"))
    texts = []
    for name in ("localleap", "twin"):
        config, program = structure(name)
        state = start([request([1], config)], program)
        lowered = jax.jit(step, static_argnames="program").lower(params_of("llada"), state, program)
        texts.append(lowered.as_text())
    assert texts[0] == texts[1]


def none_ever(proposal, masked, info):
    return commits(jnp.zeros_like(masked), TOP1)


def test_a_policy_that_never_commits_ends_in_one_line():
    leapjax.register_policy(Policy(name="idle", source="a test", commit=none_ever))
    lm = leapjax.load()
    with pytest.raises(UserError, match="policy idle: no end after .* passes; in each pass a pol"):
        lm.generate(["Ann has 2 apples."], policy="idle", gen_length=4, block_length=4)
    [answer] = lm.generate(["Ann has 2 apples."], gen_length=4, block_length=4)  # it goes on
    assert answer.steps <= 4


@pytest.mark.parametrize("declared", [True, False])
def test_a_memory_is_declared_and_returned(declared):
    passes = {"passes": ((), jnp.int32)}

    def counting(proposal, masked, info):
        new = None if declared else {"passes": info.first * 0}
        return commits(masked, TOP1, new)

    memory = (lambda w, v: passes) if declared else None
    leapjax.register_policy(Policy("forgetful", "a test", counting, memory=memory))
    with pytest.raises(UserError, match="policy forgetful: `memory` is declared if, and only if"):
        leapjax.load().generate(["Ann"], policy="forgetful", gen_length=4, block_length=4)
