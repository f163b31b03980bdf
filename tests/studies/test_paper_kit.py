"""`--reproduce all`: the rows of one checkpoint, what is missing in one line each, one report."""

import json
from pathlib import Path

import pytest

from leapjax.cli import evaluate_rows
from leapjax.cli.evaluate import main
from leapjax.errors import NoRoom, UserError
from leapjax.lm import LM
from leapjax.loader import weight_bytes
from leapjax.serve import memory
from leapjax.studies import paper_rows
from leapjax.testing import tiny_config

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")
ROWS = """\
paper: A paper, arXiv 1
own: ours
template: user_turn
decode: {gen_length: 16, block_length: 8}
expected: 50
sources: [here]
tables:
  a:
    model: some/LLaDA-A
    tasks: {gsm8k: 1, mbpp: 0, humaneval: 0}
    methods: {ours: {decode: {policy: localleap}, tokens_per_s: 12.5}}
  again:
    model: some/LLaDA-A
    tasks: {gsm8k: 1}
    methods:
      localleap: {decode: {policy: localleap}, expected: 49}
      old: {template: unknown, decode: {policy: localleap}}
  other:
    model: some/Other-7B
    tasks: {gsm8k: 1}
    methods: {ours: {decode: {policy: localleap}}}
"""


@pytest.fixture
def argv(tmp_path, monkeypatch):
    monkeypatch.setenv("LEAPJAX_CACHE_DIR", "off")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "p.yaml").write_text(ROWS)
    for name, n in (("gsm8k", 3), ("gsm8k-shots", 2)):
        lines = [{"question": f"{name} {i}?", "answer": f"so\n#### {i}"} for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    task = {"task_id": 1, "text": "t", "code": "x = 1", "test_list": ["assert 1"] * 3}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(task) + "\n")
    out = ["--model", LLADA, "--batch-size", "2", "--output", str(tmp_path / "out")]
    folders = ["--rows", str(tmp_path / "rows"), "--data-dir", str(tmp_path)]
    return ["--reproduce", "all", *folders, *out]


def report_of(tmp_path):
    return json.loads((tmp_path / "out" / "report.json").read_text())


def test_one_report_of_all_rows_that_can_be_run(argv, tmp_path, capsys, monkeypatch):
    decoded = []
    engine_for = LM.engine_for
    monkeypatch.setattr(
        LM, "engine_for", lambda lm, n, b: decoded.append(n) or engine_for(lm, n, b)
    )
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert text.startswith("some/LLaDA-A: 3 of 6 rows\n")
    for line in (
        "not run: humaneval.jsonl missing (p-a-humaneval)\n",
        "not run: another model: some/Other-7B (p-other-gsm8k)\n",
        "not run: no source tells its template (p-again-gsm8k-old)\n",
        "measured, % (95 %): null, not scored (1 answers",
    ):
        assert text.count(line) == 1
    report = report_of(tmp_path)
    ours, mbpp, theirs = report["rows"]
    assert [r["row"] for r in report["rows"]] == [
        "p-a-gsm8k",
        "p-a-mbpp",
        "p-again-gsm8k-localleap",
    ]
    for row in (ours, theirs):  # the same experiment: decoded once, told twice
        assert row["published"] == "50.00 at 12.5 tokens/s (A paper)"
        assert row["rerun_by_others"] == "49.00 (A paper); 50.00 (A paper)"
        assert row["n"] == 3 and row["metric"] == "unknown"
        assert row["steps"] > 0 and row["seconds"] > 0 and row["tokens_per_s"] >= 0
    assert decoded == [3, 1] and ours["seconds"] == theirs["seconds"]
    assert mbpp["measured"] is None
    verdicts, samples = [], [*(tmp_path / "out").glob("*-samples.jsonl")]
    for line in (tmp_path / "out" / "p-a-gsm8k-samples.jsonl").read_text().splitlines():
        verdicts.append(json.loads(line)["verdict"])
    assert len(samples) == 3 and len(verdicts) == 3
    for name, found in ours["measured"].items():
        assert found["right"] == sum(v[name] for v in verdicts)
    (line,) = (tmp_path / "out" / "p-a-mbpp-samples.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert line["verdict"] is None and line["program"].endswith("assert 1\nassert 1\nassert 1\n")
    assert report["not_run"].keys() == {"p-a-humaneval", "p-again-gsm8k-old", "p-other-gsm8k"}
    assert report["model"]["hash"] and report["versions"]["leapjax"] and report["batch_size"] == 2
    read = (tmp_path / "out" / "report.md").read_text()
    assert "some/LLaDA-A: 3 layers of width 64, " in read
    assert "| p-a-gsm8k | gsm8k, 1 shots |" in read and "- not run: humaneval.jsonl missing" in read
    # Nothing in it says where things lie on this machine.
    assert str(tmp_path) not in read + json.dumps(report) and LLADA not in json.dumps(report)
    # The same command decodes nothing and writes the same.
    assert main(argv) == 0
    assert capsys.readouterr().out == text and report_of(tmp_path) == report and len(decoded) == 2


def test_rows_that_do_not_fit(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "memory_limit", lambda: weight_bytes(LLADA) - 1)
    assert main(argv) == 0
    assert report_of(tmp_path)["rows"] == []
    told = report_of(tmp_path)["not_run"]["p-a-gsm8k"]
    assert told.startswith("does not fit here: the weights take ") and "kB" in told
    assert "- not run: does not fit here: " in (tmp_path / "out" / "report.md").read_text()
    monkeypatch.undo()
    # One row of a program may be too large although the weights are not.
    measure = evaluate_rows._measure

    def narrow(args, lm, batch_size, row, *what):
        if row.task == "mbpp":
            raise NoRoom("no memory for 1 row")
        if "again" in row.name:
            raise UserError("a prompt is too long")
        return measure(args, lm, batch_size, row, *what)

    monkeypatch.setattr(evaluate_rows, "_measure", narrow)
    assert main(argv) == 0
    assert report_of(tmp_path)["not_run"]["p-a-mbpp"] == "does not fit here: no memory for 1 row"
    assert report_of(tmp_path)["not_run"]["p-again-gsm8k-localleap"] == "a prompt is too long"
    assert len(report_of(tmp_path)["rows"]) == 1


def test_which_published_model_a_checkpoint_is(tmp_path):
    models = {row.model for row in paper_rows.load().values()} - {"unknown"}
    llada = tiny_config(n_layers=32, d_model=4096, n_heads=32)
    told = "GSAI-ML/LLaDA-8B-Instruct"
    assert paper_rows.published_model(told, llada, models) == told
    assert paper_rows.published_model("/x/llada-8b_instruct", llada, models) == told
    cache = tmp_path / "models--GSAI-ML--LLaDA-1.5" / "snapshots" / "c0ffee"
    cache.mkdir(parents=True)
    assert paper_rows.published_model(str(cache), llada, models) == "GSAI-ML/LLaDA-1.5"
    with pytest.raises(UserError, match="named like GSAI-ML/LLaDA-1.5 and has 2 layers"):
        paper_rows.published_model(str(cache), tiny_config(n_layers=2), models)
    with pytest.raises(UserError, match="--published-as, of GSAI-ML/LLaDA-1.5, GSAI-ML/LLaDA-8B-I"):
        paper_rows.published_model("/x/mine", llada, models)


def test_named_rows(argv, tmp_path, capsys):
    """They say what model it is; what keeps a row from being run is an error if none is left."""
    argv[argv.index("all")] = "p-other-gsm8k,p-again-gsm8k-old"
    assert main([*argv, "--published-as", "some/Other-7B"]) == 0
    text = capsys.readouterr().out
    assert "decode: policy=localleap" in text and "source: here" in text
    assert "some/Other-7B: 1 of 2 rows\nnot run: another model: some/LLaDA-A" in text
    argv[argv.index("p-other-gsm8k,p-again-gsm8k-old")] = "p-again-gsm8k-old"
    assert main(argv) == 2
    assert capsys.readouterr().err.endswith(": no source tells its template\n")


def test_bad_requests(argv, tmp_path, capsys):
    def without(flag):
        i = argv.index(flag)
        return argv[:i] + argv[i + 2 :]

    empty = tmp_path / "empty"
    empty.mkdir()
    for wrong, message in (
        (without("--model"), "--reproduce all needs --model"),
        (without("--output"), "--reproduce all needs --output"),
        ([*argv, "--published-as", "some/LLaDA-B"], "did you mean 'some/LLaDA-A'"),
        ([*argv, "--data-dir", str(empty)], f"in {empty}: gsm8k.jsonl missing; mbpp.jsonl"),
        ([*argv, "--rows", str(empty)], "holds no rows"),
        (["--reproduce", "p-a-gsmk8", "--rows", str(tmp_path / "rows")], "p-a-gsm8k"),
        (["--data-dir", "x"], "only read with --reproduce"),
        (["--reproduce", "all,list", "--rows", str(tmp_path / "rows")], "unknown row 'all'"),
        (["--reproduce", ","], "--reproduce needs the name of a row, all, list or table"),
    ):
        assert main(wrong) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "?"}\n')
    assert main(argv) == 2
    assert "gsm8k.jsonl line 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
