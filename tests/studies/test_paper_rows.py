import json
import random

import pytest

from leapjax.cli.evaluate import main
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.studies import paper_reproduction as reproduce
from leapjax.studies import paper_rows
from leapjax.tasks.benchmark import read

ROW = """\
paper: a paper
model: some/model
template: user_turn
measured: null
decode: {gen_length: 16, block_length: 8}
sources: [here]
notes: []
rows:
  a-gsm8k: {task: gsm8k, shots: 2, metric: flexible, expected: 79.3}
  a-raw: {task: gsm8k, shots: 0, metric: unknown, expected: unknown, template: raw}
  a-mbpp: {task: mbpp, shots: 0, metric: pass@1, expected: 28}
"""


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("LEAPJAX_CACHE_DIR", "off")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.yaml").write_text(ROW)
    for name, n in (("test", 3), ("train", 5)):
        lines = [{"question": f"{name} {i}?", "answer": f"so\n#### {i}"} for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    task = {"task_id": 1, "text": "t", "code": "x = 1", "test_list": ["assert 1"] * 3}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(task) + "\n")
    return tmp_path


def arguments(folder, name, *more):
    return ["--reproduce", name, "--rows", str(folder / "rows"), *map(str, more)]


def test_published_rows():
    """What the repository says of the papers: complete, sourced, unmeasured unless run."""
    rows = paper_rows.load()
    setting = rows["localleap-llada-gsm8k"]
    assert setting.decode == DecodeConfig(gen_length=512, block_length=32, early_stop=False)
    own = {n: setting.decode.value(n) for n in ("threshold", "relaxed_threshold", "radius")}
    assert own == {"threshold": 0.9, "relaxed_threshold": 0.75, "radius": 4}
    canvas = {"gsm8k": 512, "ifeval": 512}
    shots = {"gsm8k": 5, "ifeval": 0, "humaneval": 0, "mbpp": 3, "minerva_math": 4}
    for row in rows.values():
        assert row.decode.block_length == (256 if row.decode.policy == "entropy" else 32)
        assert row.shots == shots[row.task]
        long = canvas.get(row.task, 256) if row.name.startswith("localleap") else 256
        assert row.decode.gen_length == long
        # A number without a source would be an invention.
        assert row.expected == "unknown" or any("expected" in s for s in row.sources)
        assert row.template == "unknown" or any("setting" in s for s in row.sources)
        assert "measured" not in paper_rows.describe(row)
    with pytest.raises(UserError, match="no source tells"):
        reproduce.check(rows["localleap-dream-gsm8k"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("expected: 79.3", "expected: high", "expected is 'high'"),
        ("measured: null", "measured: 101", "measured is 101"),
        ("metric: flexible", "metric: pass@1", "metric 'pass@1'"),
        ("task: gsm8k, shots: 2", "task: gsm8k, shots: x", "shots is 'x'"),
        ("sources: [here]\n", "", ""),
        ("paper: a paper\n", "", "lacks paper"),
        ("template: user_turn", "template: chat", "template of"),
        ("gen_length: 16", "gen_length: 0", "a.yaml, row a-gsm8k: "),
        ("gen_length: 16", "gen_lenght: 16", "gen_length"),
    ],
)
def test_bad_rows(folder, old, new, message):
    file = folder / "rows" / "a.yaml"
    file.write_text(ROW.replace(old, new, 1))
    if message:
        with pytest.raises(UserError, match=message):
            paper_rows.load(folder / "rows")
    else:
        assert paper_rows.load(folder / "rows")["a-gsm8k"].sources == ()


def test_prompts_are_the_harness_own(folder):
    row = paper_rows.load(folder / "rows")["a-gsm8k"]
    problems = reproduce.problems_of(row, str(folder / "test.jsonl"))
    shots = reproduce.shots_of(row, str(folder / "train.jsonl"))
    made = reproduce.prompts(row, problems, shots)
    rng = random.Random(1234)
    for i, text in enumerate(made):
        a, b = rng.sample(range(5), 2)
        assert text == (
            f"Question: train {a}?\nAnswer: so\n#### {a}\n\n"
            f"Question: train {b}?\nAnswer: so\n#### {b}\n\nQuestion: test {i}?\nAnswer:"
        )
    assert reproduce.prompts(row, problems[:1], shots) == made[:1]


def test_fixed_shots_come_from_the_harness():
    pytest.importorskip("lm_eval")
    rows = paper_rows.load()
    for name, task in (("fast-dllm-llada-math", "Problem:\n"), ("fast-dllm-llada-mbpp", "You are")):
        row = rows[name]
        shots = reproduce.shots_of(row, None)
        assert len(shots) == row.shots
        (text,) = reproduce.prompts(row, shots[:1], shots)
        assert text.startswith(task) and text.count(task) == row.shots + 1


@pytest.mark.slow
def test_end_to_end(folder, capsys):
    data, shots, out = folder / "test.jsonl", folder / "train.jsonl", folder / "out"
    argv = arguments(folder, "a-raw", "--data", data, "--model", _embedded(), "--output", out)
    argv += ["--batch-size", "2"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "expected: unknown" in text and "of 3" in text and "source: here" in text
    report = json.loads((out / "a-raw.json").read_text())
    assert report["n"] == 3 and report["expected"] == "unknown"
    lines = [json.loads(x) for x in (out / "a-raw-samples.jsonl").read_text().splitlines()]
    problems = read(str(data), paper_rows.get_benchmark("gsm8k"))
    right = [line["verdict"]["flexible"] for line in lines]
    from leapjax.tasks import gsm8k

    scored = [gsm8k.score(x["text"], p) for x, p in zip(lines, problems, strict=True)]
    assert right == [s["flexible"] for s in scored]
    assert report["measured"]["flexible"]["right"] == sum(right)
    # A rerun takes its answers up again.
    (answers,) = out.glob("answers-*")
    before = answers.read_bytes()
    assert main(argv) == 0 and capsys.readouterr().out == text
    assert answers.read_bytes() == before
    for more, message in (
        (["--shots", shots], "has no shots"),
        (["--limit", "0"], "--limit: '0' is not"),
    ):
        assert main([*argv, *map(str, more)]) == 2
        assert message in capsys.readouterr().err


def test_programs_run_only_when_allowed(folder, capsys):
    argv = arguments(folder, "a-mbpp", "--data", folder / "mbpp.jsonl", "--model", _embedded())
    argv += ["--batch-size", "1"]
    assert main(argv) == 2
    assert "--allow-code-execution" in capsys.readouterr().err
    assert main([*argv, "--output", str(folder / "out")]) == 0
    assert "measured: null" in capsys.readouterr().out
    (line,) = (folder / "out" / "a-mbpp-samples.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert line["verdict"] is None and line["program"].endswith("assert 1\nassert 1\nassert 1\n")


@pytest.mark.parametrize(("code", "share"), [("x = 1", 100.0), ("x = ", 0.0)])
def test_executed_answers(folder, code, share):
    row = paper_rows.load(folder / "rows")["a-mbpp"]
    problems = reproduce.problems_of(row, str(folder / "mbpp.jsonl"))
    answers = [{"text": code, "steps": 4}]
    judged = reproduce.verdicts(row, problems, answers, execute=True)
    assert reproduce.report(row, answers, judged)["measured"]["pass@1"]["value"] == share
    assert reproduce.verdicts(row, problems, answers, execute=False) == [None]


def test_bad_options(folder, capsys):
    data = folder / "test.jsonl"
    for argv, message in (
        (arguments(folder, "a-gsmk8"), "a-gsm8k"),
        (arguments(folder, "a-gsm8k"), "needs --data"),
        (arguments(folder, "a-gsm8k", "--data", data), "needs --model"),
        (arguments(folder, "a-gsm8k", "--data", data, "--model", "x"), "--shots FILE"),
        (["--reproduce", "list", "--rows", str(folder)], "holds no rows"),
        (["--data", "x"], "only read with --reproduce"),
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    (folder / "he.jsonl").write_text((folder / "mbpp.jsonl").read_text() * 2)
    row = paper_rows.load(folder / "rows")["a-mbpp"]
    with pytest.raises(UserError, match="twice"):
        reproduce.problems_of(row, str(folder / "he.jsonl"))


def test_list(capsys):
    assert main(["--reproduce", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(paper_rows.load())
    assert all("null" in line for line in lines[1:])


def _embedded():
    from leapjax.loader import embedded_path

    return str(embedded_path())
