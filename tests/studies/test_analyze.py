"""`leapjax analyze` from end to end on a small model, and what it refuses."""

import json
from pathlib import Path

import pytest

from leapjax.cli.analyze import main
from leapjax.studies.observation_report import FILES

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = ["--model", str(GOLDEN / "llada-a"), "--gen-length", "16", "--block-length", "8"]


@pytest.mark.slow
def test_the_folder_holds_tables_and_figures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    argv = [*SMALL, "--limit", "5", "--batch-size", "4", "--output", str(out)]
    assert main(argv) == 0
    assert capsys.readouterr().out.split() == [str(out / name) for name in FILES]
    written = {p.name for p in out.iterdir() if not p.name.startswith("answers-")}
    assert written == set(FILES)
    report = json.loads((out / "observations.json").read_text())
    greedy, leap = report["runs"]["greedy"], report["runs"]["localleap"]
    assert greedy["prompts"] == leap["prompts"] == 5
    assert greedy["differs"] == leap["differs"] == 0
    assert leap["steps"] <= greedy["steps"] <= 16
    text = (out / "observations.md").read_text()
    for name in FILES[2:]:
        assert name in text
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    wait = greedy["delay"]["answer"]["wait"]["value"]
    assert f"| {wait:.1f} (" in text
    # A second time only if asked for, and nothing changes otherwise.
    before = (out / "observations.md").read_bytes()
    assert main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "observations.md").read_bytes() == before


@pytest.mark.parametrize(
    "flags,says",
    [
        (["--policies", "wino"], "changes tokens that it committed"),
        (["--policies", "credit"], "changes the logits"),
        (["--policies", "greedi"], "greedy"),
        (["--policies", ","], "expected 1 to 4"),
        (["--anchor-threshold", "1.5"], "0 to 1"),
        (["--limit", "0"], "at least 1"),
        (["--batch-size", "0"], "at least 1"),
        (["--input", "none.jsonl"], "no such file"),
    ],
    ids=lambda v: "_".join(v) if isinstance(v, list) else None,
)
def test_bad_options_are_one_line(flags, says, tmp_path, capsys):
    assert main([*SMALL, *flags, "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_cache_in_the_config_is_refused(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("cache: dual\n")
    argv = [*SMALL, "--config", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "use cache none" in capsys.readouterr().err
