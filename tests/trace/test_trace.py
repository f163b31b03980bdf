"""Traces from the command line: what is in them, and what is refused."""

import argparse
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest

import leapjax
from leapjax.cli.decode import main
from leapjax.cli.decode_model import note
from leapjax.config import DecodeConfig
from leapjax.trace import html, write
from leapjax.trace import record as recording
from leapjax.trace.data import KINDS
from tests.trace.pages import edited, trace

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")
SMALL = ["--model", LLADA, "--gen-length", "16", "--block-length", "8"]


def content(path):
    found = re.search(r'id="trace">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_page_holds_the_records_steps_kinds_and_confidences(tmp_path, capsys):
    page, out = tmp_path / "t.html", tmp_path / "o.jsonl"
    argv = [*SMALL, "--prompt", "Why?", "--prompt", "How </script>?", "--details"]
    argv += ["--threshold", "0.6", "--relaxed-threshold", "0.3", "--editing-threshold", "0.1"]
    assert main([*argv, "--output", str(out), "--trace", str(page)]) == 0
    capsys.readouterr()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    shown = content(page)
    assert [i["prompt"] for i in shown["items"]] == ["Why?", "How </script>?"]
    lm = leapjax.load(LLADA)
    for item, record in zip(shown["items"], records, strict=True):
        chosen, greedy = item["runs"]
        assert (chosen["policy"], greedy["policy"]) == ("localleap", "greedy")
        assert "threshold 0.6" in chosen["options"]
        assert chosen["steps"] == record["steps"]
        tokens = chosen["tokens"]
        assert [t["step"] for t in tokens] == record["commit_step"]
        assert [t["text"] for t in tokens] == lm.codec.tokens_of(record["output_ids"])
        for t, kind, sure in zip(
            tokens, record["commit_kind"], record["commit_confidence"], strict=True
        ):
            if t["step"] >= 0:
                assert t["kind"] == kind and t["confidence"] == pytest.approx(sure, abs=1e-4)
        changes = []
        for place, t in enumerate(tokens):
            texts = [e["text"] for e in (*t["earlier"], t)]
            changes += [
                (e["step"], place, text) for e, text in zip(t["earlier"], texts[1:], strict=True)
            ]
        texts = lm.codec.tokens_of([new for _, _, new in record["edits"]])
        logged = [(*e[:2], text) for e, text in zip(record["edits"], texts, strict=True)]
        assert sorted(changes) == sorted(logged) != []
        assert not any(t["earlier"] for t in greedy["tokens"])
        steps = sorted(t["step"] for t in greedy["tokens"] if t["step"] >= 0)
        assert steps == list(range(greedy["steps"]))  # one token a step


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--trace", "t.pdf"], "ends in .html, .gif, .png"),
        (["--trace", "there.html"], "is there already"),
        (["--trace", "no/t.html"], "there is no folder"),
        (["--trace", "t.html", "--trace-policies", "greedi"], "did you mean 'greedy'"),
        (["--trace-policies", "greedy"], "goes with --trace"),
        (["--trace", "t.html", "--output", "folder"], "leave it out of an --output folder"),
        (["--trace", "t.png", *["--prompt", "x"] * 4], "at most 4 prompts"),
    ],
)
def test_bad_requests_are_one_line(tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(tmp_path)
    Path("there.html").write_text("mine")
    assert main([*SMALL, "--prompt", "Why?", *argv]) == 2
    streams = capsys.readouterr()
    assert says in streams.err and streams.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["there.html"]
    assert Path("there.html").read_text() == "mine"


def test_no_text_can_end_the_data_element():
    page = html.render(trace()).decode()
    assert page.count("</script>") == 2 and "<img" not in page


def test_pictures_have_a_frame_a_step(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    item = trace().items[0]
    odd = dataclasses.replace(item.runs[0].tokens[0], text="\r\x1c")  # can't be drawn
    run = dataclasses.replace(item.runs[0], tokens=(odd, *item.runs[0].tokens[1:]))
    item = dataclasses.replace(item, runs=(run, item.runs[1]))
    shown = dataclasses.replace(trace(), items=(item, *trace().items))
    for name in ("t.gif", "t.png"):
        write(shown, tmp_path / name)
    with image.open(io.BytesIO((tmp_path / "t.gif").read_bytes())) as moving:
        assert moving.n_frames == 4 and moving.info["loop"] == 0
        size = moving.size
    with image.open(tmp_path / "t.png") as still:
        assert still.size == size


def test_pictures_show_an_edited_token_from_its_edit_on():
    pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from leapjax.trace.picture import _FILL, Painter

    assert set(_FILL) == set(KINDS)
    painter = Painter(edited())
    pink = tuple(bytes.fromhex(_FILL["edited"][1:]))

    def boxes(done):
        """Pixels of the colour `edited`, without the legend's."""
        frame = painter.frame(done, numbers=True)
        above = frame.crop((0, 0, frame.width, frame.height - 60))
        return sum(n for n, colour in above.getcolors(1 << 16) if colour == pink)

    shown = [boxes(done) for done in range(6)]
    assert shown[0] == shown[1] == 0 < shown[2] and shown[2] < shown[4] == shown[5], shown
    frames = [painter.frame(done).tobytes() for done in (2, 4)]
    assert frames[0] != frames[1]


def test_samples_say_where_their_trace_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recording.collect, "collect", lambda *_: None)
    monkeypatch.setattr(recording, "write_file", lambda *_: None)
    args = argparse.Namespace(trace="t.html", trace_policies=None, overwrite=False)
    recording.write_samples(args, None, DecodeConfig(), [], note)
    assert capsys.readouterr().err == "leapjax decode: note: trace written to t.html\n"
