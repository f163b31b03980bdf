"""`leapjax convert` as a user meets it: output, status, one-line errors, signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leapjax.cli import convert
from leapjax.converters import fake

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capfd):
    """run(*arguments) -> (status, stdout, stderr)."""

    def call(*arguments):
        status = convert.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return call


def one_error(result, *words):
    status, out, err = result
    assert status == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("leapjax convert: error: ") and "Traceback" not in err
    for word in words:
        assert word in err
    return err


def test_convert_then_back(run, golden, tmp_path, read_all):
    status, out, err = run(golden / "llada-a", tmp_path / "out")
    assert status == 0 and err == ""
    assert re.fullmatch(
        r".*/out: llada, 193,984 parameters in float32, 775.9 kB in \d+\.\d s, "
        r"peak memory \d+\.\d\d GB\n",
        out,
    )
    assert run("--to-hub", tmp_path / "out", tmp_path / "hub")[0] == 0
    assert read_all(tmp_path / "hub") == read_all(golden / "llada-a")


def test_check_reads_no_weights_and_writes_nothing(run, hub, tmp_path):
    folder = hub("dream-a")
    shard = folder / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-4] + b"\xff\xff\xff\x7f")  # a NaN, which headers don't show
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run("--check", folder)
    assert (status, err) == (0, "") and "dream, 182,080 parameters, complete" in out
    assert sorted(tmp_path.rglob("*")) == before
    one_error(run(folder, tmp_path / "out"), shard.name, "non-finite")
    assert sorted(tmp_path.rglob("*")) == before


def test_check_of_experts_from_headers_alone(run, tmp_path):
    """The script's folder: true headers, no weights."""
    script = [sys.executable, ROOT / "scripts" / "make_fake_checkpoint.py", "llada2-flash"]
    done = subprocess.run([*script, tmp_path / "hub", "--sparse", "--layers", "3"], text=True)
    assert done.returncode == 0
    status, out, err = run("--check", tmp_path / "hub")
    assert (status, err) == (0, "") and "MLP 9216 in 1 layer," in out
    shared = "256 of width 1024 in 2 layers, 8 a token, and a shared one of width 1024"
    assert f"experts {shared}\n" in out
    size = sum(f.stat().st_blocks * 512 for f in (tmp_path / "hub").glob("*.safetensors"))
    assert size < 2e6


def test_dtype(run, golden, tmp_path):
    status, out, _ = run("--dtype", "bfloat16", golden / "dream-a", tmp_path / "out")
    assert status == 0 and "in bfloat16" in out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["dtype"] == "bfloat16"


def test_wrong_arguments(run, golden, tmp_path):
    one_error(run(), "SRC")
    one_error(run(golden / "dream-a"), "DST")
    one_error(run("--dtype", "int8", golden / "dream-a", tmp_path / "x"), "int8", "bfloat16")
    one_error(run("--chek", golden / "dream-a"), "--chek")
    one_error(run("--chec", golden / "dream-a"), "--chec")  # no guessing of abbreviations
    one_error(run("--to-hub", "--check", golden / "dream-a"), "--to-hub")
    one_error(run("--to-hub", golden / "dream-a", tmp_path / "x"), "no leapjax checkpoint")
    one_error(run("no/such/folder", tmp_path / "x"), "no/such/folder")
    run(golden / "dream-a", tmp_path / "out")
    one_error(run(tmp_path / "out", tmp_path / "x"), "already", "--to-hub")
    one_error(run(golden / "dream-a", tmp_path / "out"), "exists already")
    assert run("--overwrite", golden / "dream-a", tmp_path / "out")[0] == 0
    assert not (tmp_path / "x").exists()


def test_existing_destination_is_seen_before_a_download(run, tmp_path, monkeypatch):
    from leapjax import converters

    monkeypatch.setattr(converters, "resolve", lambda *a: pytest.fail("downloaded"))
    one_error(run("org/name", tmp_path), "exists already")


def test_newlines_in_names_stay_one_line(run, tmp_path):
    one_error(run(tmp_path / "a\nb\x1b[31m", tmp_path / "x"))


def test_help_teaches(run):
    status, out, _ = run("--help")
    assert status == 0
    for word in ("examples:", "--check", "--to-hub", "--dtype", "GSAI-ML/LLaDA-8B-Instruct"):
        assert word in out


def test_script_is_the_same_command(golden, tmp_path):
    script = [sys.executable, ROOT / "scripts" / "convert.py"]
    done = subprocess.run([*script, golden / "dream-a", tmp_path / "out"], capture_output=True)
    assert done.returncode == 0 and done.stderr == b""
    done = subprocess.run([*script, "nope", tmp_path / "x"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("leapjax convert: error: nope: ")


def test_conversion_needs_no_jax(golden, tmp_path):
    code = (
        "import sys; from leapjax import converters; converters.convert(*sys.argv[1:]); "
        "assert not {'jax', 'torch', 'orbax', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, golden / "dream-a", tmp_path / "out"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_leave_nothing(name, status, tmp_path):
    for _ in fake.write_fake(
        tmp_path / "hub", fake.scaled("llada-8b-instruct", layers=8, scale=4), 2
    ):
        pass
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "convert.py", tmp_path / "hub", tmp_path / "out"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.tmp-*/params/layers.q/1.*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, getattr(signal, name))
    _, err = process.communicate(timeout=60)
    err = err.removeprefix("leapjax convert: stopping\n")  # said where it takes a while
    assert process.returncode == status and err == "leapjax convert: interrupted\n"
    assert [p.name for p in tmp_path.iterdir()] == ["hub"]


def test_only_leapjax_converters_is_a_name():
    done = subprocess.run(
        [sys.executable, "-c", "import converters"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode and "leapjax.converters" in done.stderr
