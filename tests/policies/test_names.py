"""What policies may be called, wherever a name is taken."""

import dataclasses

import pytest

from leapjax import DecodeConfig, UserError
from leapjax.config import row_config
from leapjax.config.resolve import from_python, resolve
from leapjax.options import read_config
from leapjax.policies import POLICIES, ROWS, Parameter, register_policy
from leapjax.policies.names import policy_of, row_names
from leapjax.studies import setting_grids as grid
from leapjax.studies.policy_rows import rows
from leapjax.testing import tiny_config
from leapjax.trace.collect import config_for, name_of, names

SMALL = {"gen_length": 32, "block_length": 8}
MODEL = tiny_config()
BASE = DecodeConfig(**SMALL).for_model(MODEL)


def variants(name):
    return name, name.replace("_", "-"), name.replace("-", "_"), name.upper(), f" {name} "


@pytest.mark.parametrize("name", [*POLICIES, *ROWS])
def test_every_name_is_taken_everywhere(name, tmp_path):
    want = POLICIES[name].name if name in POLICIES else ROWS[name][0]
    configs = [DecodeConfig(policy=n, **SMALL).for_model(MODEL) for n in variants(name)]
    assert {c.policy for c in configs} == {want} == {configs[0].to_dict()["policy"]}
    if name in ROWS and ROWS[name].tokens:
        assert configs[0].value("steps") == 32 // ROWS[name][1]
    given = {"policy": name.replace("_", "-"), **SMALL}
    assert resolve(given, model=lambda: MODEL) == configs[0]
    (tmp_path / "c.yaml").write_text(f"policy: {name}\ngen_length: 32\nblock_length: 8\n")
    file = read_config(tmp_path / "c.yaml")
    assert resolve({}, file, model=lambda: MODEL) == configs[0]
    assert row_config(configs[0], {"policy": name}, "line 1") == configs[0]
    made = grid.build([grid.parse_axis(f"policy={name}")], BASE)
    assert made.points[0].config == configs[0]


@pytest.mark.parametrize("name", [*POLICIES, *ROWS])
def test_tables_and_traces_take_both_kinds(name):
    (row,) = row_names([name], "--policies")
    assert ROWS[row][0] == policy_of(name)[0] and ROWS[row].label
    assert rows([name], ["none"], BASE)[-1].config.policy == ROWS[row][0]
    assert names([name], BASE)[0] == row
    config = config_for(row, BASE)
    assert config.policy == ROWS[row][0] and name_of(config) == row


def test_a_name_that_fixes_the_steps_bears_no_others(tmp_path):
    for options in ({"steps": 8}, {"schedule": "dream", "block_length": 32}):
        with pytest.raises(UserError, match="policy greedy is low_confidence with"):
            BASE.replace(policy="greedy", **options)
    assert BASE.replace(policy="greedy", steps=32).steps == 32
    job = BASE.replace(policy="low_confidence", steps=8)
    assert row_config(job, {"policy": "schedule-4"}, "line 1") == job
    for other in ("greedy", "threshold", "credit"):
        with pytest.raises(UserError, match="line 1: .*(same for the whole job|with steps 32)"):
            row_config(job, {"policy": other}, "line 1")
    # A flag over a file: the file's steps go, and a line says so.
    (tmp_path / "c.yaml").write_text("policy: low_confidence\nsteps: 8\n")
    notes = []
    file = read_config(tmp_path / "c.yaml")
    config = resolve({"policy": "greedy", **SMALL}, file, warn=notes.append)
    assert config.value("steps") == 32 and "steps is ignored, policy greedy" in notes[0]


def test_help_tells_the_other_names():
    from leapjax.cli.help_policies import text

    shown = text().split("\nlow_confidence\n")[1].split("\n\n")[0]
    assert "also called: greedy, schedule-2, schedule-4, schedule-8" in shown


def test_a_registered_policy_has_its_names_and_axes(registry):
    share = Parameter("share", float, "", 0.5, low=0, high=1, at_most="threshold")
    known = POLICIES["confidence_threshold"]
    parameters = (*known.parameters, share)
    register_policy(dataclasses.replace(known, name="mine", rows=(), parameters=parameters))
    base = DecodeConfig(policy="mine", **SMALL)
    made = grid.build([grid.parse_axis("share=0.1,0.2,0.95")], base)
    assert [p.config.share for p in made.points] == [0.1, 0.2] and made.left_out == 1
    assert rows(["Mine"], ["none"], base)[-1].label == "mine 0.9 0.5"
    assert names(["mine"], base) == ("mine", "greedy") and config_for("mine", base) == base
    with pytest.warns(
        UserWarning, match="share is lowered from its default 0.5 to 0.3, as threshold is"
    ):
        assert from_python(base, {"threshold": 0.3}, None, MODEL).share == 0.3


def test_suggestions_know_every_name():
    for wrong, near in (("gredy", "greedy"), ("thresold", "threshold"), ("creditt", "credit")):
        with pytest.raises(UserError, match=f"did you mean '{near}'"):
            DecodeConfig(policy=wrong)
        with pytest.raises(UserError, match=f"--policies: .*did you mean '{near}'"):
            row_names([wrong], "--policies")
