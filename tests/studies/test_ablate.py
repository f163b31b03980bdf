"""`leapjax ablate` from end to end on a golden model."""

import csv
import json
from pathlib import Path

import pytest

from leapjax.cli.ablate import main

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")
SMALL = ["--model", LLADA, "--gen-length", "8", "--batch-size", "4", "--strata", "easy"]
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("LEAPJAX_CACHE_DIR", "off")


def test_a_grid(tmp_path, capsys):
    out = tmp_path / "out"
    argv = [*SMALL, "--block-length", "8", "--limit", "2", "--output", str(out), "--grid"]
    argv += ["threshold=0.5,0.9", "relaxed_threshold=0.3,0.6", "radius=1,4"]
    assert main(argv) == 0
    streams = capsys.readouterr()
    assert "6 points, 2 left out, 0 merged" in streams.err
    assert "| threshold | relaxed_threshold | radius | accuracy" in streams.out
    assert (out / "points.md").read_text() == streams.out
    assert (out / "pareto.png").read_bytes().startswith(PNG)
    assert (out / "heatmap.png").read_bytes().startswith(PNG)
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["seed"] == 1 and report["left_out"] == 2 and report["n"] == 2
    with open(out / "points.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(report["points"]) == 6
    for row, point in zip(rows, report["points"], strict=True):
        assert {k: float(row[k]) for k in point["values"]} == point["values"]
        assert float(row["steps"]) == point["steps"]
        assert [float(row[f"accuracy_{e}"]) for e in ("interval_low", "interval_high")] == point[
            "accuracy_interval"
        ]
    assert any(p["on_front"] for p in report["points"])
    assert report["greedy"][0]["agreement"] == 1.0
    # A rerun decodes nothing and says the same; no half-written file is left.
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert main(argv) == 0
    assert capsys.readouterr().out == streams.out
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert not [name for name in before if "part" in name]


def test_commits_of_each_point(tmp_path, capsys):
    out = tmp_path / "out"
    argv = [*SMALL, "--block-length", "8", "--limit", "2", "--output", str(out), "--commits"]
    assert main([*argv, "--grid", "radius=1,8", "threshold=0.9", "relaxed_threshold=0.1"]) == 0
    text = capsys.readouterr().out
    points = json.loads((out / "report.json").read_text())["points"]
    for point, label in zip(points, ("radius 1, threshold", "radius 8, threshold"), strict=True):
        (every,) = (
            r
            for r in point["commits"]
            if (r["kind"], r["distance"], r["clean"]) == ("propagated", None, False)
        )
        by_distance = [r for r in point["commits"] if r["distance"] and not r["clean"]]
        assert sum(r["commits"] for r in by_distance) == every["commits"] > 0
        assert max(r["distance"] for r in by_distance) <= point["values"]["radius"]
        assert f"| commits of {label} 0.9, relaxed_threshold 0.1 | distance" in text
    assert (out / "commits.png").read_bytes().startswith(PNG)
    assert "commits" not in (out / "points.csv").read_text()
    assert main([*argv, "--grid", "radius=0:8:9"]) == 2
    assert "--commits: 9 points are more than 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "the following arguments are required: --grid"),
        (["--grid", "treshold=1"], "did you mean 'threshold'"),
        (["--grid", "block_length=8", "--block-length", "8"], "--block-length is set, and an axis"),
        (["--grid", "threshold=0.9", "--seed", "-1"], "--seed: '-1' is not"),
        (["--grid", "threshold=0.9", "--batch-size", "0"], "--batch-size: '0' is not"),
        (["--grid", "threshold=0.9", "--limit", "0"], "--limit: '0' is not"),
    ],
)
def test_bad_arguments(tmp_path, capsys, more, message):
    argv = ["--model", LLADA, "--gen-length", "8"]
    argv += [] if "--block-length" in more else ["--block-length", "8"]
    assert main([*argv, *more, "--output", str(tmp_path / "out")]) == 2
    streams = capsys.readouterr()
    assert message in streams.err and not streams.out
    assert not (tmp_path / "out").exists()
