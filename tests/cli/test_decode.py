"""`leapjax decode` from end to end on golden models."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import leapjax
from leapjax.cli import main as cli
from leapjax.cli.decode import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
LLADA = str(GOLDEN / "llada-a")
SMALL = ["--gen-length", "32", "--block-length", "8"]
QUESTION = "Hal has 4 pens and gets 18 more. How many pens now?"
STATIC = ("policy", "schedule", "gen_length", "block_length", "cache")


@pytest.fixture(autouse=True)
def one_load(monkeypatch):
    """Load each model once for all tests; compiled programs are kept with it."""
    monkeypatch.setattr(leapjax, "load", _load)


_REAL_LOAD = leapjax.load
_LOADED = {}


def _load(path=None, dtype=None, **rest):
    key = (str(path), dtype)
    if key not in _LOADED:
        _LOADED[key] = _REAL_LOAD(path, dtype=dtype, **rest)
    return _LOADED[key]


def write(path, *records):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def golden_jobs():
    """Golden cases by model and static options, as input records."""
    jobs = {}
    for line in (GOLDEN / "decode.jsonl").read_text().splitlines():
        case = json.loads(line)
        options = dict(case["options"])
        if "threshold" in options:
            options.pop("steps", None)  # thresholds ignore it in the originals, we refuse it
        static = tuple((k, options.pop(k)) for k in STATIC if k in options)
        if case["model"] in ("llada-a", "dream-a") and "cache" not in dict(static):
            jobs.setdefault((case["model"], static), []).append((case, options))
    # The largest of each policy and model: the loop's own tests run them all.
    largest = {}
    for key, cases in jobs.items():
        kind = (key[0], dict(key[1])["policy"])
        if len(cases) > len(largest.get(kind, (None, []))[1]):
            largest[kind] = (key, cases)
    for (model, policy), ((_, static), cases) in sorted(largest.items()):
        if model == "dream-a" and policy in ("low_confidence", "confidence_threshold"):
            continue  # nothing of the command line that llada-a's do not show; time
        yield pytest.param(model, dict(static), cases, id=f"{model}-{policy}")


@pytest.mark.parametrize("model, static, cases", list(golden_jobs()))
def test_golden_decodes_through_files(tmp_path, capsys, model, static, cases):
    records = [
        {"id": case["id"], "prompt_ids": case["prompt_ids"], "options": options, "n": n}
        for n, (case, options) in enumerate(cases)
    ]
    out = tmp_path / "out.jsonl"
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in static.items()]
    source = write(tmp_path / "in.jsonl", *records)
    argv = ["--model", str(GOLDEN / model), "--input", source, "--output", str(out), *flags]
    assert main(argv) == 0
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "tokens/s" in streams.err and streams.err.count("\n") == 1
    assert [r["metadata"] for r in read(out)] == [{"n": n} for n in range(len(cases))]
    for record, (case, _) in zip(read(out), cases, strict=True):
        for key in ("id", "output_ids", "steps", "commit_step"):
            assert record[key] == case[key], (case["id"], key)


def test_every_kind_of_prompt_gives_the_same_answer(tmp_path, capsys):
    ids = json.loads((GOLDEN / "llada-a.chat.json").read_text())[0]["ids"]
    source = write(
        tmp_path / "in.jsonl",
        {"prompt": QUESTION},
        "",
        {"messages": [{"role": "user", "content": QUESTION}], "k": "v"},
        {"prompt_ids": ids, "id": "c"},
    )
    assert main(["--model", LLADA, "--input", source, *SMALL, "--details"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["id"] for r in records] == [1, 3, "c"]
    assert records[1].pop("metadata") == {"k": "v"}
    for record in records:
        record.pop("id")
    assert records[0] == records[1] == records[2]
    assert len(records[0]["commit_kind"]) == len(records[0]["commit_confidence"]) == 32
    # Some of the keys only, in the contract's order; to a file, too.
    some = ["--model", LLADA, "--input", source, *SMALL, "--fields", "commit_kind,text,id,text"]
    assert main(some) == 0
    lines = capsys.readouterr().out
    assert [list(json.loads(line)) for line in lines.splitlines()] == [
        ["id", "text", "commit_kind"]
    ] * 3
    assert json.loads(lines.splitlines()[0])["commit_kind"] == records[0]["commit_kind"]
    assert main([*some, "--output", str(tmp_path / "out.jsonl")]) == 0
    assert (tmp_path / "out.jsonl").read_text() == lines and capsys.readouterr()
    assert main(["--model", LLADA, "--prompt", QUESTION, *SMALL]) == 0
    streams = capsys.readouterr()
    assert streams.out == records[0]["text"] + "\n"
    assert "1 answer," in streams.err


def test_infilling(tmp_path, capsys):
    mask, ids = 325, [39, 64, 75, 325, 290, 325, 325, 303]
    source = write(tmp_path / "in.jsonl", {"infill_ids": ids})
    assert main(["--model", LLADA, "--input", source, *SMALL]) == 0
    record = json.loads(capsys.readouterr().out)
    open_ = [i == mask for i in ids]
    assert [c != -2 for c in record["commit_step"]] == open_
    assert len(record["output_ids"]) == len(ids) and mask not in record["output_ids"]
    assert all(o or a == b for o, a, b in zip(open_, ids, record["output_ids"], strict=True))


def test_stop_cuts_the_text(capsys):
    argv = ["--model", LLADA, "--prompt", QUESTION, *SMALL, "--json"]
    assert main(argv) == 0
    whole = json.loads(capsys.readouterr().out)
    cut = whole["text"][:10]
    assert main([*argv, "--stop", "never", "--stop", whole["text"][10:14]]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["finish_reason"]) == (cut, "stop")
    assert record["output_ids"] == whole["output_ids"]


def test_samples_and_limit(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", *[{"prompt": f"{QUESTION} {n}"} for n in range(3)])
    argv = ["--model", LLADA, "--input", source, *SMALL, "--limit", "2"]
    assert main([*argv, "--num-samples", "3", "--temperature", "1"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["id"], r["sample"]) for r in records] == [(i, s) for i in (1, 2) for s in range(3)]
    assert len({tuple(r["output_ids"]) for r in records[:3]}) == 3
    assert main([*argv, "--num-samples", "2"]) == 0
    assert "temperature is 0" in capsys.readouterr().err


def test_config_file_and_flags(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {LLADA}\ngen_length: 32\nblock_length: 8\nthreshold: 0.8\nradius: 2\n"
    )
    argv = ["--config", str(config), "--prompt", QUESTION, "--json"]
    assert main(argv) == 0
    by_file = json.loads(capsys.readouterr().out)
    assert main(["--model", LLADA, *SMALL, "--threshold=0.8", "--radius=2", *argv[2:]]) == 0
    assert json.loads(capsys.readouterr().out) == by_file
    assert main([*argv, "--policy", "low_confidence"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["steps"] >= by_file["steps"]
    assert [line.split(": ")[-1].split()[0] for line in streams.err.splitlines()[:2]] == [
        "threshold",
        "radius",
    ]


def test_bad_records_set_aside(tmp_path, capsys):
    good = {"prompt": QUESTION}
    source = write(tmp_path / "in.jsonl", good, {"id": "b", "prompt": ""}, "{", good)
    out = tmp_path / "out.jsonl"
    argv = ["--model", LLADA, "--input", source, *SMALL, "--output", str(out)]
    assert main([*argv, "--max-errors", "1"]) == 2
    assert "line 3: not valid JSON" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl"]
    assert main([*argv, "--max-errors", "2"]) == 0
    assert [r["id"] for r in read(out)] == [1, 4]
    bad = read(tmp_path / "out.errors.jsonl")
    assert [(r["line"], r["id"]) for r in bad] == [(2, "b"), (3, None)]
    assert bad[0]["error"] == "prompt is empty; give some text"
    assert list(bad[0]) == ["line", "id", "error"]
    # On stdout there is no file beside it: they are named on stderr.
    assert main([*argv[:4], *SMALL, "--max-errors", "2"]) == 0
    streams = capsys.readouterr()
    assert len(streams.out.splitlines()) == 2
    assert "note: line 2 left out: prompt is empty" in streams.err
    # A later run without bad records leaves no stale file of errors behind.
    write(tmp_path / "in.jsonl", good)
    assert main([*argv, "--overwrite"]) == 0
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_empty_input_is_an_empty_output(tmp_path):
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", "", " ")
    assert main(["--model", LLADA, "--input", source, "--output", str(out)]) == 0
    assert out.read_text() == ""


BAD_LINES = [
    ("{", "line 2: not valid JSON"),
    ("\ufeff{}", "line 2: not valid JSON"),
    ("[1]", "line 2: expected a JSON object"),
    ('{"prompt": NaN}', "line 2: not valid JSON"),
    ({"prmpt": "a"}, "line 2: has no prompt; did you mean 'prompt'"),
    ({"prompt_ids": [9999]}, "line 2: prompt_ids[0] is 9999, outside the vocabulary of 336"),
    ({"prompt_ids": [1] * 500}, "line 2: the prompt has 500 tokens"),
    ({"prompt": "a", "id": 1}, "line 2: id 1 occurs twice"),
    ({"prompt": "a", "options": {"threshold": 2}}, "line 2: options: threshold is 2"),
    ({"prompt": "a", "options": {"block_length": 4}}, "line 2: options: option 'block_length'"),
    ({"infill_ids": [1, 2]}, "line 2: infill_ids holds no mask id"),
]


@pytest.mark.parametrize("line, message", BAD_LINES)
def test_bad_lines(tmp_path, capsys, line, message):
    source = write(tmp_path / "in.jsonl", {"prompt": "a"}, line)
    out = tmp_path / "out.jsonl"
    assert main(["--model", LLADA, "--input", source, "--output", str(out), *SMALL]) == 2
    check_error(capsys, message)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl"]


BAD_ARGUMENTS = [
    ([], "no prompt; give --prompt TEXT or --input FILE"),
    (["--prompt", "a", "--input", "b"], "--prompt and --input are both given"),
    (["--prompt", ""], "--prompt is empty"),
    (["--prompt", "a", "--gen-length", "100"], "block_length 32 does not divide gen_length 100"),
    (["--prompt", "a", "--threshold", "nan"], "threshold is nan"),
    (["--prompt", "a", "--threshold", "1.5"], "between 0 and 1"),
    (["--prompt", "a", "--threshold", "0.5"], "relaxed_threshold 0.75 is above threshold 0.5"),
    (["--prompt", "a", "--policy", "localep"], "did you mean 'localleap'"),
    (["--prompt", "a", "--steps", "8"], "policy localleap does not read it"),
    (["--prompt", "a", "--thresold", "1"], "unrecognized arguments: --thresold"),
    (["--prompt", "a", "--radius", "x"], "'x' is not a whole number"),
    (["--prompt", "a", "--batch-size", "0"], "at least 1"),
    (["--prompt", "a", "--limit", "-1"], "at least 1"),
    (["--prompt", "a", "--dtype", "float16"], "argument --dtype: invalid choice"),
    (["--prompt", "a", "--details"], "add --json or --output"),
    (["--prompt", "a", "--fields", "id"], "--fields is for records; add --json or --output"),
    (["--prompt", "a", "--json", "--fields", "txt"], "unknown field 'txt'; did you mean 'text'"),
    (["--prompt", "a", "--json", "--fields", "id", "--details"], "--details goes without --fields"),
    (["--input", "TMP/here.jsonl", "--output", "TMP/job", "--fields", "x"], "unknown field 'x'"),
    (["--fields", "id"], "no prompt; give --prompt TEXT"),
    (["--prompt", "a", "--config", "TMP/none.yaml"], "none.yaml: can't be read"),
    (["--prompt", "a", "--config", "TMP/bad.yaml"], "did you mean 'threshold'"),
    (["--input", "TMP/none.jsonl"], "none.jsonl: no such file"),
    (["--input", "TMP"], "Is a directory"),
    (["--prompt", "a", "--output", "TMP/no/out.jsonl"], "create it first"),
    (["--prompt", "a", "--output", "TMP/here.jsonl"], "--overwrite"),
    (["--prompt", "a", "--output", "TMP/folder.jsonl"], "not an ordinary file"),
    (["--input", "TMP/here.jsonl", "--output", "TMP/here.jsonl", "--overwrite"], "is the input"),
    (["--prompt", "a", "--stop", ""], "empty text"),
]


@pytest.mark.parametrize("argv, message", BAD_ARGUMENTS)
def test_bad_arguments(tmp_path, capsys, argv, message):
    (tmp_path / "bad.yaml").write_text("treshold: 0.5\n")
    (tmp_path / "here.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "folder.jsonl").mkdir()
    before = sorted(tmp_path.iterdir())
    argv = [a.replace("TMP", str(tmp_path)) for a in argv]
    assert main(["--model", LLADA, *argv]) == 2
    check_error(capsys, message)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "here.jsonl").read_text() == '{"prompt": "a"}\n'


def check_error(capsys, message):
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("leapjax decode: error: ")
    assert message in streams.err
    assert streams.err.count("\n") == 1


def test_prompt_too_long(capsys):
    assert main(["--model", LLADA, "--prompt", "a " * 600, *SMALL]) == 2
    check_error(capsys, "prompt 1: the prompt has")


def test_a_failing_write_leaves_nothing(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    argv = ["--model", LLADA, "--prompt", QUESTION, *SMALL]
    assert main([*argv, "--output", str(tmp_path / "out.jsonl")]) == 2
    check_error(capsys, "can't be written (No space left on device)")
    assert list(tmp_path.iterdir()) == []


def test_help_teaches(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("examples:", "--relaxed-threshold", "--no-early-stop", "tokens per step"):
        assert word in text


def test_the_command_table(capsys):
    for name, summary in cli.COMMANDS.items():
        assert cli.main([name, "--help"]) == 0
        assert f"usage: leapjax {name}" in capsys.readouterr().out
        assert summary
    assert cli.main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ["decode"])
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"leapjax {leapjax.__version__}\n"
    for wrong, near in (("decod", "decode"), ("--hlep", "decode"), ("zzz", "decode")):
        assert cli.main([wrong]) == 2
        error = capsys.readouterr().err
        assert near in error and error.count("\n") == 1


def script(*argv):
    return [sys.executable, str(ROOT / "scripts" / "decode.py"), "--model", LLADA, *argv]


def test_as_a_process_in_a_pipe(kernels, said, tmp_path):
    """The script, records on stdin, no traceback when the reader goes away."""
    record = json.dumps({"prompt": QUESTION}) + "\n"
    command = script("--input", "-", *SMALL)
    done = subprocess.run(
        command, input=record, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"] == 1
    assert said(done.stderr).count("\n") == 1
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        process.stdin.write(record)
        process.stdin.close()
        assert said(process.stderr.read()) == ""
        assert process.wait(timeout=120) == 128 + signal.SIGPIPE


def test_interrupted(kernels, said, tmp_path):
    out = tmp_path / "out.jsonl"
    with subprocess.Popen(
        script("--input", "-", "--output", str(out), *SMALL),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".out*")) and time.monotonic() < deadline:
            time.sleep(0.1)  # until the job has begun; its input stays open
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 130
    assert said(error) == "leapjax decode: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_infilling_from_text(capsys):
    argv = ["--model", LLADA, "--infill", "Tom [MASK]*3 apples, \\[MASK].", "--json", *SMALL]
    assert main(argv) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"].startswith("Tom ") and record["text"].endswith(" apples, [MASK].")
    assert sum(c != -2 for c in record["commit_step"]) == 3
    assert main(["--model", LLADA, "--infill", "Tom", *SMALL]) == 2
    assert "holds no [MASK]" in capsys.readouterr().err
