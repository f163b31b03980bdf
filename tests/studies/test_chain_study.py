"""`leapjax chain`: settings as rows of one program, exact costs, the command from end to end."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from leapjax import chains
from leapjax.cli.chain import main
from leapjax.studies import chain_study

SMALL = (
    "--policies confidence_threshold --settings 3 --prompts 2 --fresh 2 --gen-length 4 --states 4"
)
SMALL += " --frontier 0.8 --eigenvalues 0.8 --chains 2 --contexts 16 --radii 1,8 --relaxed 0.5"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("LEAPJAX_CACHE_DIR", "off")


def test_two_hundred_settings_are_one_compilation(compilations):
    """Of LocalLeap's six numbers; what a setting decodes is what it decodes alone."""
    lm = chains.synthetic(4, 4, 0.8, seed=1)
    prompts = chains.sample(lm, 2, 3, seed=1)
    how = {
        "temperature": 1.0,
        "canvas": 4,
        "prompts": prompts,
        "fresh": prompts,
        "folder": None,
        "batch_size": 100,
    }
    with compilations.seen() as compiled:
        own, refused = chain_study.frontier(lm, ["localleap"], count=200, **how)
    # One program of LocalLeap, and one for one token a step.
    assert compiled.count("run") == 2 and not refused
    assert len(own) == 200 == len({json.dumps(p["numbers"]) for p in own})
    steps = [p["steps"] for p in own]
    assert min(steps) < 2 and max(steps) == 4
    slow = next(p for p in own if p["steps"] == 4)
    assert abs(slow["error"]) < 1e-5 and slow["lost"] < 1e-5
    fast = min(own, key=lambda p: p["steps"])
    assert fast["lost"] > 0.1
    with compilations.seen() as compiled:
        chain_study.frontier(lm, ["localleap"], count=20, **how)
    assert compiled.count("run") == 0


def test_settings_cover_the_ranges():
    lm = chains.synthetic(4, 4, 0.8)
    base = lm.options(policy="localleap", gen_length=16, block_length=16)
    made = chain_study.settings(base, 50)
    assert made[0] == base and len(set(made)) == 50
    names = ("threshold", "relaxed_threshold", "radius")
    both = np.array([[c.value(n) for n in names] for c in made])
    assert (both[:, 1] <= both[:, 0]).all() and np.ptp(both[:, 0]) > 0.9
    assert both[:, 2].min() == 0 and both[:, 2].max() == 16
    schedule = lm.options(policy="random", gen_length=16, block_length=16)
    assert {c.value("steps") for c in chain_study.settings(schedule, 200)} == {*range(1, 17)}


def test_near_and_far_commit_as_many():
    """With a radius beyond the context nothing is elsewhere; nearer, both sides count."""
    lms = [chains.synthetic(4, 4, 0.9, seed=s) for s in (1, 2)]
    near, none = chain_study.neighbourhoods(lms, [2, 64], 0.5, 32, seed=0)
    assert near["chains"] == 2 and 1 <= near["commits"] <= 4
    low, high = near["sampled_interval"]
    assert low <= near["sampled"] <= high
    assert none["chains"] == 0 and none["sampled"] is None
    noisy = chains.synthetic(4, 4, 0.9, noise=0.2)
    with pytest.raises(chain_study.UserError, match="one token each"):
        chain_study.neighbourhoods([noisy], [2], 0.5, 8, seed=0)


def test_the_command(tmp_path, capsys):
    out, text = tmp_path / "out", tmp_path / "text"
    text.write_text("abab abba\nbaab\n")
    argv = [*SMALL.split(), "--text", str(text), "--output", str(out)]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert (out / "report.md").read_text() == shown
    assert "greedy: 16 states fitted to the characters of text" in shown
    report = json.loads((out / "report.json").read_text())
    assert report["counts"]["synthetic-0.8"] == {"confidence_threshold": 3}
    with open(out / "points.csv") as stream:
        assert len(list(csv.DictReader(stream))) == len(report["points"]) == 6
    # Several characters a state: what is lost is not known, but how probable the answers are.
    assert {p["chain"]: p["lost"] is None for p in report["points"]} == {
        "synthetic-0.8": False,
        "fitted": True,
    }
    assert all(p["gap"] is not None for p in report["points"])
    for name in ("frontier.png", "neighbourhoods.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    before = {p.name: p.read_bytes() for p in out.glob("*.jsonl")}
    assert main(argv) == 2  # the report is there
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0
    assert capsys.readouterr().out == shown
    assert {p.name: p.read_bytes() for p in out.glob("*.jsonl")} == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--policies", "localeap"], "--policies: unknown policy 'localeap'"),
        (["--frontier", "1.5"], "--frontier: 1.5 is not between 0 and 1"),
        (["--radii", "0"], "--radii: 0 is not a whole number of at least 1"),
        (["--policies", "dawn"], "policy dawn"),
        (["--text", "/nowhere/x"], "--text /nowhere/x: can't be read (No such file or directory)"),
        (
            ["--model", str(Path(__file__).parents[1] / "golden" / "llada-a")],
            "only a chain has exact likelihoods",
        ),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, argv, message):
    assert main([*argv, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") <= 2
    assert not (tmp_path / "out").exists()
