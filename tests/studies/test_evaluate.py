import json
from pathlib import Path

import pytest

from leapjax import tasks
from leapjax.cli.evaluate import main
from leapjax.compilation import cache_folder
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.studies import evaluation
from leapjax.studies.policy_rows import rows
from leapjax.studies.store import AnswerStore
from leapjax.testing import tiny_config

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")
SMALL = ["--gen-length", "16", "--block-length", "8", "--batch-size", "4", "--strata", "easy,main"]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("LEAPJAX_CACHE_DIR", "off")


def test_end_to_end(tmp_path, capsys):
    out, table = tmp_path / "out", tmp_path / "table.md"
    argv = ["--model", LLADA, *SMALL, "--limit", "4", "--policies", "schedule-8,localleap"]
    argv += ["--output", str(out), "--markdown", str(table)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "n=4" in text and "greedy, one token a step" in text
    assert max(map(len, text.splitlines())) <= 100
    assert " 0.00 " in text and "+0.00" not in text + table.read_text()  # nothing is right here
    assert "| LocalLeap (0.9, 0.75, radius 4) | none |" in table.read_text()
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "report.json").read_text())
    assert [r["policy"] for r in report["rows"]] == ["greedy", "schedule-8", "localleap"]
    assert {"settings", "versions", "device", "model", "definitions"} <= report.keys()
    assert report["model"]["hash"] and report["settings"]["seed"] == 0
    groups = report["rows"][1]["groups"]
    assert list(groups) == ["all", "easy", "main"]
    assert groups["all"]["n"] == 4 and groups["main"]["n"] == 2
    assert report["rows"][0]["groups"]["all"]["steps_share"] == 1.0
    assert groups["all"]["steps"] <= 2
    # A rerun decodes nothing; with more problems, the new ones only.
    before = {p: p.read_bytes() for p in out.glob("answers-*")}
    assert len(before) == 2  # greedy is a schedule, so that these two share a program and a file
    assert main(argv) == 0
    assert capsys.readouterr().out == text
    assert {p: p.read_bytes() for p in out.glob("answers-*")} == before
    argv[argv.index("--limit") + 1] = "6"
    assert main(argv) == 0
    for path, content in before.items():
        assert path.read_bytes().startswith(content)
        settings = 1 + path.name.startswith("answers-low_confidence")
        assert path.read_bytes().count(b"\n") == 1 + 6 * settings


def test_templates_seeds_and_equal_steps(tmp_path, capsys):
    out, table = tmp_path / "one", tmp_path / "table.md"
    argv = ["--model", LLADA, *SMALL, "--policies", "schedule-2,threshold", "--limit", "4"]
    argv += ["--templates", "2", "--seeds", "2", "--equal", "steps", "--reference", "schedule-2"]
    argv += ["--tune-limit", "4"]
    assert main([*argv, "--output", str(out), "--markdown", str(table)]) == 0
    text = capsys.readouterr().out
    assert "n=16" in text and "8 problems, 2 templates, 2 seeds" in text
    assert max(map(len, text.splitlines())) <= 100
    report = json.loads((out / "report.json").read_text())
    assert [r["equal"] for r in report["rows"]] == ["", "", "", "steps"]
    groups = report["rows"][1]["groups"]
    assert groups["template 1"]["n"] == 8 and groups["easy"]["n"] == 8
    # What the table says was reached is what the answers took.
    (found,) = report["equal"]
    kept = json.loads((out / "outcomes.json").read_text())
    _, lead, _, row = kept["rows"]
    steps, wanted = (sum(r["answers"]["steps"]) / 16 for r in (row, lead))
    assert (found["cost"], found["reference_cost"]) == (steps, wanted)
    assert found["share"] == steps / wanted and found["tried"] > 1
    assert found["matched"] == (abs(steps / wanted - 1) <= 0.05)
    assert row["options"]["threshold"] < 0.9 and found["label"] in table.read_text()
    # Thresholds are found on problems that are not reported, and nothing is decoded twice.
    stored = [json.loads(x) for p in out.glob("answers-confidence*") for x in p.open()][1:]
    asked = {x["id"].split("/")[1].rsplit("-", 1)[0] for x in stored}
    assert len(asked) == 8 + 4 and asked > set(row["answers"]["problem"])
    before = {p: p.read_bytes() for p in out.glob("answers-*")}
    assert main([*argv, "--output", str(out)]) == 0
    assert capsys.readouterr().out == text
    assert {p: p.read_bytes() for p in out.glob("answers-*")} == before
    # Another policy on the same problems compares; another batch size does not.
    other, two = str(tmp_path / "two"), ["--compare", str(out), str(tmp_path / "two")]
    argv = ["--model", LLADA, *SMALL, "--policies", "schedule-8", "--limit", "4", "--seeds", "2"]
    assert main([*argv, "--output", other]) == 0
    assert main(two) == 2
    err = capsys.readouterr().err
    assert "differ in prompts, templates, so that" in err and err.count("\n") == 1
    assert main([*two, "--allow-unequal"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "n=8" in told
        and "UNEQUAL, compared all the same: prompts (" in told
        and "templates ([0, 1], [0])" in told
    )


def test_results_survive_a_kill(tmp_path):
    with AnswerStore(tmp_path, "greedy-none", {"a": 1}) as results:
        results.add({"id": "p", "x": 1})
        results.add({"id": "q", "x": 2})
    path = results.path
    path.write_bytes(path.read_bytes()[:-5])  # a torn last line
    with AnswerStore(tmp_path, "greedy-none", {"a": 1}) as results:
        assert list(results.answers) == ["p"]
        results.add({"id": "q", "x": 3})
    with AnswerStore(tmp_path, "greedy-none", {"a": 1}) as results:
        assert results.answers["q"]["x"] == 3 and results.path == path
    with AnswerStore(tmp_path, "greedy-none", {"a": 2}) as other:
        assert not other.answers and other.path != path
    path.write_bytes(path.read_bytes() + b"{\n")
    with pytest.raises(UserError, match="damaged"):
        AnswerStore(tmp_path, "greedy-none", {"a": 1})


def test_rows():
    base = DecodeConfig(gen_length=64, block_length=32).for_model(tiny_config())
    made = rows(["localleap", "schedule-8"], ["dual"], base)
    assert [(r.policy, r.config.cache) for r in made] == [
        ("greedy", "none"),
        ("localleap", "dual"),
        ("schedule-8", "dual"),
    ]
    assert [r.config.value("steps") for r in made] == [64, None, 8]
    with pytest.raises(UserError, match="did you mean 'localleap'"):
        rows(["localeap"], ["none"], base)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--task", "math"], "task 'math' is unknown"),
        (["--split", "train"], "split 'train' is unknown"),
        (["--strata", "hard"], "stratum 'hard' is unknown"),
        (["--policies", "x"], "unknown policy 'x'"),
        (["--caches", "x"], "unknown cache 'x'"),
        (["--limit", "0"], "--limit: '0' is not"),
        (["--batch-size", "0"], "--batch-size: '0' is not"),
        (["--gen-length", "40"], "block_length 32 does not divide"),
        (["--templates", "9"], "--templates is '9'; expected 1 to 8, or unseen for task"),
        (["--equal", "tokens"], "unknown kind 'tokens'"),
        (["--equal", "steps", "--reference", "credit"], "is not among --policies"),
        (["--equal", "steps", "--policies", "schedule-2"], "needs rows of at least two policies"),
        (["--equal", "steps", "--split", "tune"], "are among the reported ones"),
        (["--tolerance", "0"], "--tolerance is 0.0"),
        (["--compare", "a", "b", "--output", "./b"], "is compared, and its report would be"),
        (["--compare", "/no/such"], "needs at least two folders"),
        (["--markdown", "/no/such/folder/t.md"], "its folder is missing"),
    ],
)
def test_bad_arguments(capsys, argv, message):
    assert main(["--model", LLADA, *argv]) == 2
    streams = capsys.readouterr()
    assert message in streams.err and streams.err.count("\n") == 1 and not streams.out


def test_cache_folder(tmp_path):
    assert cache_folder({"LEAPJAX_CACHE_DIR": "off", "XDG_CACHE_HOME": "/x"}) is None
    assert cache_folder({"LEAPJAX_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/x"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/leapjax")
    assert cache_folder({}) == Path.home() / ".cache" / "leapjax"


def test_trials_are_every_problem_in_every_template_once():
    task = tasks.get("wordproblems")
    draws = [task.problems(limit=5, seed=s) for s in (0, 1)]
    made = evaluation.trials(task, draws, [0, 3], sampled=False)
    keys = {(t.problem.id, t.template, t.seed) for t in made}
    assert len(made) == len(keys) == 20 and {t.seed for t in made} == {0}
    assert evaluation.templates(task, "unseen") == [6, 7]
    # A seed that changes nothing would pass one sample off as two.
    with pytest.raises(UserError, match="--seeds 2: .* draws the same problems for every seed"):
        evaluation.trials(task, draws[:1] * 2, [0], sampled=False)
    noisy = evaluation.trials(task, draws[:1] * 2, [0], sampled=True)
    assert {t.seed for t in noisy} == {0, 1} and len(noisy) == 10
