"""Where commands write: `-`, symbolic links, and studies without matplotlib."""

import json
import sys
from pathlib import Path

import pytest

from leapjax.benchmarks.report import write_section
from leapjax.cli.main import main
from leapjax.studies import files, plots
from leapjax.studies import observation_report as analysis

ROOT = Path(__file__).parents[2]
LLADA = str(ROOT / "tests" / "golden" / "llada-a")
SMALL = ["--model", LLADA, "--gen-length", "8", "--block-length", "8"]
DECODE = ["decode", *SMALL, "--prompt", "Hal has 4 pens"]


def test_output_to_stdout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*DECODE, "--json"]) == 0
    wanted = capsys.readouterr().out
    assert main([*DECODE, "--output", "-"]) == 0
    assert capsys.readouterr().out == wanted and json.loads(wanted)["steps"]
    assert list(tmp_path.iterdir()) == []
    assert main([*DECODE, "--output", "-", "--resume"]) == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["decode", "--trace", "-"],
        ["evaluate", "--output", "-"],
        ["evaluate", "--markdown", "-"],
        ["ablate", "--grid", "radius=1,2", "--output", "-"],
        ["calibrate", "--task", "wordproblems", "--output", "-"],
        ["analyze", "--output", "-"],
        ["train", "--output", "-"],
        ["train", "--output", "a", "--export", "-"],
        ["convert", LLADA, "-"],
        ["plan", "--sweep", "--json", "-"],
        ["benchmark", "--json", "-"],
    ],
    ids=" ".join,
)
def test_no_folder_is_named_like_stdout(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "- is stdout" in error
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_through_links(tmp_path, capsys):
    (tmp_path / "there").mkdir()
    writers = {
        "answers.jsonl": lambda p: main([*DECODE, "--output", str(p), "--overwrite"]),
        "trace.html": lambda p: main(
            [*DECODE, "--trace", str(p), "--overwrite", "--trace-policies", "greedy"]
        ),
        "table.md": lambda p: files.write(p, "new"),
        "page.md": lambda p: write_section(p, "part", "new"),
    }
    for name, write in writers.items():
        for before in ("old\n", None):
            real, link = tmp_path / "there" / name, tmp_path / name
            real.unlink(missing_ok=True)
            link.unlink(missing_ok=True)
            if before is not None:
                real.write_text(before)
            link.symlink_to(Path("there") / name)
            assert not write(link), name
            assert link.is_symlink() and real.stat().st_size > 0 and real.read_text() != before
    capsys.readouterr()
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == sorted(writers)


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plots.available()


@pytest.mark.parametrize(
    "argv, files",
    [
        (["ablate", "--grid", "threshold=0.8,0.9"], {"points.csv", "points.md", "report.json"}),
        (["evaluate", "--policies", "greedy"], {"report.json"}),
    ],
    ids=["ablate", "evaluate"],
)
def test_studies_without_matplotlib(argv, files, no_matplotlib, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*argv, *SMALL, "--limit", "2", "--output", str(out)]) == 0
    said = capsys.readouterr()
    assert said.err.count("plots are left out") == 1 and "pip install" in said.err
    assert "steps" in said.out
    written = {p.name for p in out.rglob("*") if p.is_file()}
    assert files <= written and not any(name.endswith(".png") for name in written)


def test_an_analysis_without_matplotlib(no_matplotlib, tmp_path):
    made = json.loads((ROOT / "docs" / "observations.json").read_text())
    names = files.write_all(tmp_path, analysis.report_files(made))
    assert names == ["observations.json", "observations.md"]
    assert {p.name for p in tmp_path.iterdir()} == {"observations.json", "observations.md"}
    assert "![" not in (tmp_path / "observations.md").read_text()
