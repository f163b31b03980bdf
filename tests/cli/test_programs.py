"""`leapjax plan --save DIR` and `leapjax decode --programs DIR`."""

import json
import shutil
from pathlib import Path

import jax
import pytest

import leapjax
from leapjax.cli.decode import main as decode
from leapjax.cli.plan import main as plan
from leapjax.policies import Policy, commits
from leapjax.serve import programs
from leapjax.serve.programs import Programs
from leapjax.types import COMMIT

SDAR = str(Path(__file__).parents[1] / "golden" / "sdar-a")
CANVAS = ["--model", SDAR, "--gen-length", "8", "--cache", "block"]
# Two rows at once, so that the third is put into a slot that was used.
RECORDS = [{"prompt_ids": [7, 8, 9] * 3 + [n]} for n in range(3)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of programs, and the answers of a run that compiled."""
    folder = tmp_path_factory.mktemp("saved")
    records = folder / "records.jsonl"
    records.write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    run = [*CANVAS, "--input", str(records), "--batch-size", "2"]
    assert decode([*run, "--output", str(folder / "compiled.jsonl")]) == 0
    jax.clear_caches()
    save = ["--prompt-length", "10", "--batch", "2", "--save", str(folder / "programs")]
    assert plan([*CANVAS, *save]) == 0
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the one program, to be changed."""
    folder = shutil.copytree(saved / "programs", tmp_path / "programs")
    return next(iter(folder.iterdir()))


def arguments(saved, programs):
    records = str(saved / "records.jsonl")
    return [*CANVAS, "--input", records, "--programs", str(programs), "--no-compile"]


def one_line(capsys):
    said = capsys.readouterr().err.splitlines()
    [line] = [line for line in said if "note:" not in line]
    return line


def test_a_run_with_saved_programs_compiles_nothing(saved, compilations, monkeypatch, capsys):
    """The same answers; a model is loaded before, which compiles conversions of its own."""
    lm = leapjax.load(SDAR)
    assert lm.replicas
    monkeypatch.setattr(leapjax, "load", lambda *args, **options: lm)
    jax.clear_caches()
    output = saved / "brought.jsonl"
    with compilations.none():
        run = arguments(saved, saved / "programs")
        assert decode([*run, "--output", str(output)]) == 0
    assert output.read_text() == (saved / "compiled.jsonl").read_text()
    assert "--batch-size 2, for the programs of" in capsys.readouterr().err


def change(file, **fields):
    """Write other fields into the header."""
    line, _, body = file.read_bytes().partition(b"\n")
    header = json.loads(line)
    header["made"] |= fields
    file.write_bytes(json.dumps(header).encode() + b"\n" + body)


@pytest.mark.parametrize("field", ["format", "jax", "jaxlib", "code", "platform", "device"])
def test_a_header_that_differs_is_refused_by_name(saved, copied, field, capsys, monkeypatch):
    """Before anything is unpickled."""
    monkeypatch.setattr(programs, "_load", lambda *how: pytest.fail("unpickled"))
    change(copied, **{field: "other"})
    assert decode(arguments(saved, copied.parent)) == 2
    assert f"{copied.name}: was saved with {field} other, here it is" in one_line(capsys)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\n", b"[]\n", b'{"made": 1}\n'])
def test_other_files_are_refused(saved, copied, content, capsys):
    copied.write_bytes(content)
    assert decode(arguments(saved, copied.parent)) == 2
    assert f"{copied.name}: is no saved program; remove it" in one_line(capsys)


def test_a_damaged_file_is_refused(saved, copied, capsys):
    copied.write_bytes(copied.read_bytes()[:-1])
    assert decode(arguments(saved, copied.parent)) == 2
    assert "is damaged" in one_line(capsys)


def test_a_run_that_would_compile_ends(saved, capsys):
    run = arguments(saved, saved / "programs")
    assert decode([*run, "--gen-length", "12"]) == 2
    line = one_line(capsys)
    assert "no program for prompts up to 32 tokens, 2 rows at once" in line
    assert "differs in gen_length (8, not 12)" in line and "--prompt-length 32" in line


def test_what_does_not_go_together_is_refused(saved, tmp_path, capsys):
    run = arguments(saved, tmp_path)
    assert decode(run) == 2
    assert "holds none; leapjax plan --save makes them" in one_line(capsys)
    run.remove("--programs")
    run.remove(str(tmp_path))
    assert decode(run) == 2
    assert "--no-compile goes with --programs DIR" in one_line(capsys)
    assert plan(["--topology", "v5e:2x2", "--save", str(tmp_path)]) == 2
    assert "--save needs --model FOLDER" in one_line(capsys)


def test_a_policy_of_ones_own_is_not_saved(saved, registry, capsys):
    """Its code is not part of the header."""

    def commit(proposal, masked, info):
        return commits(masked, COMMIT)

    leapjax.register_policy(Policy("mine", "nowhere", commit))
    folder = Programs(str(saved / "programs"))
    assert folder.agreed("rows") == 2 and folder.agreed("mesh") is None
    save = ["--prompt-length", "10", "--batch", "2", "--save", str(saved / "programs")]
    assert plan([*CANVAS, "--policy", "mine", *save]) == 2
    assert "policy mine: is not part of leapjax" in capsys.readouterr().err
