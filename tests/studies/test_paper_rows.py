import json
import random
from pathlib import Path

import pytest

from leapjax.cli.evaluate import main
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.studies import paper_reproduction as reproduce
from leapjax.studies import paper_rows

ROW = """\
paper: A paper, arXiv 1
own: ours
decode: {gen_length: 16, block_length: 8}
sources: [here]
tables:
  x:
    model: some/llada-a
    template: user_turn
    tasks: {gsm8k: 2, mbpp: 0}
    methods:
      ours: {decode: {policy: localleap, threshold: [0.9, 0.8]}, expected: [79.3, unknown]}
  raw:
    model: some/llada-a
    template: raw
    tasks: {gsm8k: 0}
    methods:
      ours: {decode: {policy: greedy}, expected: unknown, notes: [short]}
      theirs: {decode: {policy: localleap}, expected: 70, tokens_per_s: 12.5}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.yaml").write_text(ROW)
    for name, n in (("gsm8k", 3), ("gsm8k-shots", 5)):
        lines = [{"question": f"{name} {i}?", "answer": f"so\n#### {i}"} for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    task = {"task_id": 1, "text": "t", "code": "x = 1", "test_list": ["assert 1"] * 3}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(task) + "\n")
    return tmp_path


def test_published_rows():
    """What the repository says of the papers: complete, sourced, unmeasured unless run."""
    rows = paper_rows.load()
    leap = DecodeConfig(threshold=0.9, relaxed_threshold=0.75, radius=4, early_stop=False)
    canvas = {"gsm8k": 512, "ifeval": 512}
    shots = {"gsm8k": 5, "ifeval": 0, "humaneval": 0, "mbpp": 3, "minerva_math": 4}
    setting = rows["localleap-llada-gsm8k"]
    assert setting.decode == leap.replace(gen_length=512, block_length=32)
    for row in rows.values():
        whole = {"entropy": 256, "klass": row.decode.block_length}
        assert row.decode.block_length == whole.get(row.decode.policy, 32)
        assert row.shots == (8 if "1024" in row.name else shots[row.task])
        long = canvas.get(row.task, 256) if row.name.startswith("localleap") else 256
        named = [int(n) for n in ("512", "1024") if f"-{n}-" in row.name]
        assert row.decode.gen_length == (named or [long])[0]
        # A number without a source would be an invention.
        assert row.expected == "unknown" or any("expected" in s for s in row.sources)
        assert row.template == "unknown" or any("setting" in s for s in row.sources)
        assert "measured" not in paper_rows.describe(row)
    known = [r for r in rows.values() if "unknown" not in (r.model, r.template)]
    assert len(known) == len(rows) - 10


def test_a_paper_s_numbers_beside_those_of_others():
    """The page's tables are made of the rows; LocalLeap's settings show DAWN's reruns."""
    rows = paper_rows.load()
    page = (Path(__file__).parents[2] / "docs" / "paper-rows.md").read_text()
    assert paper_rows.comparison(rows) in page
    row = rows["localleap-llada-humaneval"]
    same = paper_rows.by_setting(rows.values())[row.setting]
    assert same[0] is row and not any(r.own for r in same[1:])
    *_, published, others = paper_rows.cells_of(row, same)
    assert published == "unknown (LocalLeap)"
    assert others == "39.63 at 109.8 tokens/s (DAWN); 40.24 (dlm-seq)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[79.3, unknown]", "high", "expected is 'high'"),
        ("[79.3, unknown]", "[79.3]", "expected has 1 values for 2 tasks"),
        ("[0.9, 0.8]", "[0.9]", "threshold has 1 values for 2 tasks"),
        ("own: ours", "own: ours\nmeasured: 101", "measured is 101"),
        ("own: ours", "own: ours\ntokens: 1", "tokens"),
        ("gsm8k: 2", "gsm8k: x", "shots is 'x'"),
        ("gsm8k: 2", "gsm9k: 2", "task is one of"),
        ("sources: [here]\n", "", ""),
        ("paper: A paper, arXiv 1\n", "", "lacks paper"),
        ("template: user_turn", "template: chat", "template of"),
        ("gen_length: 16", "gen_length: 0", "a.yaml, table x, method ours, gsm8k: "),
        ("gen_length: 16", "gen_lenght: 16", "gen_length"),
        ("tables:", "table:", "tables: expected keys"),
    ],
)
def test_bad_rows(folder, old, new, message):
    file = folder / "rows" / "a.yaml"
    file.write_text(ROW.replace(old, new, 1))
    if message:
        with pytest.raises(UserError, match=message):
            paper_rows.load(folder / "rows")
    else:
        assert paper_rows.load(folder / "rows")["a-x-gsm8k"].sources == ()


def test_prompts_are_the_harness_own(folder):
    row = paper_rows.load(folder / "rows")["a-x-gsm8k"]
    problems = reproduce.problems_of(row, folder)
    shots = reproduce.shots_of(row, folder)
    made = reproduce.prompts(row, problems, shots)
    rng = random.Random(1234)
    for i, text in enumerate(made):
        a, b = rng.sample(range(5), 2)
        assert text == (
            f"Question: gsm8k-shots {a}?\nAnswer: so\n#### {a}\n\n"
            f"Question: gsm8k-shots {b}?\nAnswer: so\n#### {b}\n\nQuestion: gsm8k {i}?\nAnswer:"
        )
    assert reproduce.prompts(row, problems[:1], shots) == made[:1]


def test_fixed_shots_come_from_the_harness(tmp_path):
    pytest.importorskip("lm_eval")
    rows = paper_rows.load()
    for name, task in (("fast-dllm-llada-math", "Problem:\n"), ("fast-dllm-llada-mbpp", "You are")):
        row = rows[name]
        shots = reproduce.shots_of(row, tmp_path)
        assert len(shots) == row.shots
        (text,) = reproduce.prompts(row, shots[:1], shots)
        assert text.startswith(task) and text.count(task) == row.shots + 1


@pytest.mark.parametrize(("code", "share"), [("x = 1", 100.0), ("x = ", 0.0)])
def test_executed_answers(folder, code, share):
    row = paper_rows.load(folder / "rows")["a-x-mbpp"]
    problems = reproduce.problems_of(row, folder)
    answers = [{"text": code, "steps": 4, "tokens": 2, "seconds": 0.5}]
    judged = reproduce.verdicts(row, problems, answers, execute=True)
    assert reproduce.measured(row, answers, judged)["measured"]["pass@1"]["value"] == share
    assert reproduce.verdicts(row, problems, answers, execute=False) == [None]


def test_a_problem_that_is_there_twice(folder):
    (folder / "mbpp.jsonl").write_text((folder / "mbpp.jsonl").read_text() * 2)
    row = paper_rows.load(folder / "rows")["a-x-mbpp"]
    with pytest.raises(UserError, match="twice"):
        reproduce.problems_of(row, folder)


def test_list(folder, capsys):
    assert main(["--reproduce", "list"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 115
    for row in paper_rows.load().values():
        task = row.task.removeprefix("minerva_")
        (line,) = [x for x in text.splitlines() if row.name.replace(task, "TASK") in x.split()]
        assert f"{task} {row.expected:.2f}" in line if row.expected != "unknown" else task in line
    assert main(["--reproduce", "table", "--rows", str(folder / "rows")]) == 0
    assert "| 70.00 at 12.5 tokens/s (A paper) |  |" in capsys.readouterr().out
