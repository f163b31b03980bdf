"""A compiler that dies in its process costs a row, not the sweep."""

import importlib.util
import json
import os
import signal
import time

import pytest

from leapjax.cli import plan as command
from leapjax.errors import UserError
from leapjax.planning import isolated, search

# What a child imports by name. It stands in for the TPU compiler, which is not everywhere, and
# really aborts, crashes or sleeps.
COMPILERS = """
import os, sys, time
from leapjax.errors import UserError

def told(text):
    print("not the answer", flush=True)
    if text == "bad":
        raise UserError("a user's mistake")
    return {"said": text, "double": float(text)}

def aborts_on_tensor_4(place, mesh, program, slots, quantize):
    if mesh.tensor == 4:
        line = "F1126 21:17:44.552335   31293 fusion_emitter.cc:10934] "
        line += "Check failed: no window for %a, metadata={}"
        print("I1126 nothing yet", line, "*** stack ***", sep="\\n", file=sys.stderr, flush=True)
        os.abort()
    moved = dict.fromkeys(("window pass", "refresh pass", "besides", "outside"), 10**9)
    return {
        "counted": {
            "weights": 10**9, "cache": 10**9, "state": 0, "temporaries": 10**9, "total": 3 * 10**9,
            "donated": 10**9, "collectives": [], "moved": moved, "need": moved,
        },
        "estimated": {"cycles": moved},
        "measured": {"compile_s": 1.0, "compile_cpu_s": 1.0},
    }

def sleeps(place, mesh, program, slots, quantize):
    time.sleep(60)
"""


@pytest.fixture
def compilers(tmp_path, monkeypatch):
    (tmp_path / "compilers_of_a_test.py").write_text(COMPILERS)
    monkeypatch.syspath_prepend(tmp_path)
    import compilers_of_a_test  # type: ignore

    return compilers_of_a_test


def test_the_answer_comes_back(compilers):
    assert isolated.call(compilers.told, "7", timeout_s=60) == {"said": "7", "double": 7.0}
    with pytest.raises(UserError, match="^a user's mistake$"):
        isolated.call(compilers.told, "bad", timeout_s=60)
    with pytest.raises(RuntimeError, match="could not convert"):
        isolated.call(compilers.told, "x", timeout_s=60)


def test_ends():
    with pytest.raises(isolated.Ended) as e:
        isolated.call(os.abort, timeout_s=60)
    assert (e.value.how, e.value.reason, e.value.lasting) == ("aborted", "SIGABRT", True)
    began = time.monotonic()
    with pytest.raises(isolated.Ended, match="timed out: after 0.5 s") as e:
        isolated.call(time.sleep, 60, timeout_s=0.5)
    assert time.monotonic() - began < 30 and not e.value.lasting
    assert isolated.ended(signal.SIGSEGV, "").how == "crashed"
    killed = isolated.ended(signal.SIGKILL, "")
    assert killed.how == "killed" and not killed.lasting


def run(capsys, *argv):
    status = command.main(["--model", "100b", *argv])
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err


def test_an_abort_is_a_row_of_the_sweep(compilers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "compile_one", compilers.aborts_on_tensor_4)
    reuse, report = tmp_path / "plans.jsonl", tmp_path / "report.json"
    argv = ["--sweep", "v5p", "--tries", "4", "--reuse", str(reuse), "--quantize", "none"]
    argv += ["--batch", "8"]
    status, lines, err = run(capsys, *argv, "--json", str(report))
    assert status == 0 and not err
    rows = {line.split()[1]: line for line in lines if line.startswith("v5p:")}
    assert len(rows) == 4
    abort = rows["data=1,tensor=4"]
    assert "data=1,fsdp=1,tensor=4: compiler aborted (SIGABRT, fusion_emitter.cc:10934" in abort
    assert abort.endswith("no window for %a)")
    assert rows["data=1,tensor=8"].split()[:3] == ["v5p:2x2x2", "data=1,tensor=8", "bfloat16"]
    [best] = [line for line in lines if line.startswith("Least chip-seconds a token: v5p:")]
    assert "--batch-size" in best and "tensor=4" not in best
    assert "Measured on a" in " ".join(lines)
    plans = json.loads(report.read_text())["plans"]
    assert sorted(p["fits"] for p in plans) == [False, True, True, True]
    [failed] = [p for p in plans if not p["fits"]]
    assert {f["ended"] for f in failed["failed"]} == {"aborted"}
    # Kept like other results: nothing is compiled when the sweep goes on.
    monkeypatch.setattr(isolated, "call", lambda *a, **b: pytest.fail("compiled again"))
    assert run(capsys, *argv, "--json", str(report)) == (status, lines, err)


def test_an_abort_of_a_single_plan(compilers, monkeypatch, capsys):
    monkeypatch.setattr(search, "compile_one", compilers.aborts_on_tensor_4)
    argv = ["--topology", "v5p:2x2x1", "--mesh", "tensor=4", "--reuse", "off", "--batch", "8"]
    argv += ["--quantize", "none"]
    status, lines, err = run(capsys, *argv)
    assert status == 1 and not err
    assert len(lines) == 2 and "compiler aborted" in lines[1]  # a heading and one line


def test_a_timeout_is_a_row_and_is_tried_again(compilers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "compile_one", compilers.sleeps)
    reuse = tmp_path / "plans.jsonl"
    argv = ["--topology", "v5p:2x2x1", "--mesh", "tensor=4", "--reuse", str(reuse), "--markdown"]
    argv += ["--quantize", "none"]
    status, lines, _ = run(capsys, *argv, "--compile-timeout", "0.5")
    assert status == 1 and "timed out (after 0.5 s)" in lines[-1] and lines[-1][0] == "|"
    assert not reuse.exists()
    assert run(capsys, *argv, "--compile-timeout", "0")[0] == 2


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_no_compiler_is_told_in_one_line(capsys):
    assert command.main(["--topology", "v5e:2x2", "--mesh", "tensor=4", "--reuse", "off"]) == 2
    out, err = capsys.readouterr()
    assert out == ""  # no heading of a table that does not come
    assert err.count("\n") == 1 and "pip install" in err
