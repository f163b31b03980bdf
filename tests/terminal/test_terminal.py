import contextlib
import dataclasses
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

import leapjax
from leapjax.cli.decode import main
from leapjax.terminal import canvas, samples
from leapjax.terminal import chat as chatting
from leapjax.types import Completion

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("LEAPJAX_CACHE_DIR", "off")


CANVAS = canvas.Canvas(
    pieces=["Tom", " has", "\n", ",", " 9", None, None],
    steps=[0, 1, 1, -3, 2, 0, -1],
    kinds=["top1", "anchor", "propagated", "seed", "schedule", "anchor", "none"],
    last=3,
)


def test_marks_tell_the_kinds_apart():
    assert CANVAS.after(0).plain == "_______"
    assert CANVAS.after(1).plain == "Tom^____$!_"
    assert CANVAS.after(2).plain == "Tom^ has!~\n,@_$!_"
    assert CANVAS.after(3).plain == "Tom^ has!~\n,@ 9|$!."
    marks = {mark for mark, _, _ in canvas.KINDS.values()}
    styles = {style for _, style, _ in canvas.KINDS.values()}
    assert len(marks) == len(styles) == len(canvas.KINDS) == 6
    used = canvas.legend(["top1", "anchor"]).plain
    assert "token^" in used and "token!" in used and "token~" not in used


def test_an_edited_token_has_a_mark_from_its_edit_on():
    shown = canvas.Canvas(
        pieces=["Tom", " 5", "."],
        steps=[0, 0, 1],
        kinds=["anchor", "top1", "top1"],
        last=4,
        earlier={0: [(1, "Ann"), (3, "Eve")], 1: [(2, None)]},
    )
    frames = [shown.after(done).plain for done in range(5)]
    assert frames == ["___", "Ann!$^_", "Eve!&$^.^", "Eve!& 5^&.^", "Tom!& 5^&.^"]
    assert str(shown.after(2).spans[0].style) == canvas.KINDS["edited"][1]
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, no_color=True, color_system=None, width=80)
    canvas.play(console, shown, frame_s=0)
    assert "step 1 of 4, 0 edits" in stream.getvalue()
    assert "step 4 of 4, 3 edits" in stream.getvalue() and "Tom!&" in stream.getvalue()


def test_the_canvas_of_a_completion_with_edits():
    lm = leapjax.load(LLADA)
    done = dataclasses.replace(
        answer(["anchor", "top1"]), steps=3, edits=[[1, 0, 9], [2, 0, 5]], committed_ids=[8, 5]
    )
    shown = canvas.Canvas.of(lm, done)
    old = lm.codec.tokens_of([8, 9])
    assert shown.earlier == {0: [(1, old[0]), (2, old[1])]}
    assert canvas.kinds_of(done) == {"anchor", "top1", "edited"}
    assert canvas.edits_of(done, done) == ", 4 edits" and not canvas.edits_of(answer(["top1"]))


def test_control_characters_stay_off_the_screen():
    shown = canvas.Canvas(["\x1b[2J", "a\r"], [0, 0], ["anchor"] * 2, 1).after(1).plain
    assert "\x1b" not in shown and "\r" not in shown


def screen(monkeypatch, no_color):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    made = canvas.console(stream)
    return Console(
        file=stream, force_terminal=True, no_color=made.no_color, color_system="256", width=80
    ), stream


def test_colour_and_no_colour(monkeypatch):
    for no_color in (False, True):
        console, stream = screen(monkeypatch, no_color)
        canvas.play(console, CANVAS, frame_s=0)
        text = stream.getvalue()
        assert "has!" in text and "step 3 of 3" in text
        assert ("\x1b[1;32m" in text) == (not no_color)


def test_samples_piped_are_plain():
    lm = leapjax.load(LLADA)
    stream = io.StringIO()
    config = leapjax.DecodeConfig(gen_length=16, block_length=8)
    samples.run(lm, config, stream)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert text.count(" steps, greedy ") == samples.COUNT + 1  # each, and in all
    assert "tokens/s, compiling not counted" in text
    for problem in samples.problems(samples.DRAWS["wordproblems"], 0):
        assert problem.question in text
    assert [p.id for p in samples.problems(samples.DRAWS["wordproblems"], 0)] != [
        p.id for p in samples.problems(samples.DRAWS["wordproblems"], 1)
    ]


def test_without_an_embedded_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("leapjax.loader.embedded_path", lambda: tmp_path)
    assert main([]) == 2
    streams = capsys.readouterr()
    assert "no embedded model" in streams.err and streams.err.count("\n") == 1


CHAT = ["--model", LLADA, "--chat", "--gen-length", "16", "--block-length", "8"]


def chat(monkeypatch, capsys, text, *flags):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main([*CHAT, *flags]) == 0
    return capsys.readouterr()


def test_chat_through_pipes(monkeypatch, capsys):
    asked = []
    generate = leapjax.LM.generate

    def seen(self, prompts, *args, **kwargs):
        asked.append([m["content"] for m in prompts[0]["messages"]])
        return generate(self, prompts, *args, **kwargs)

    monkeypatch.setattr(leapjax.LM, "generate", seen)
    said = "Hello\n\nAgain\n/reset\nHello\n/help\n/hlep\n/quit\nnever\n"
    streams = chat(monkeypatch, capsys, said)
    assert [len(m) for m in asked] == [1, 3, 1]
    assert asked[1][0] == "Hello" and asked[1][2] == "Again" and asked[2] == ["Hello"]
    assert "starts again" in streams.err and "unknown command /hlep" in streams.err
    assert streams.err.count(chatting.HELP) == 2
    assert streams.out.startswith(asked[1][1] + "\n")
    assert streams.out.endswith(asked[1][1] + "\n")


def test_chat_that_is_too_long_goes_on(monkeypatch, capsys):
    streams = chat(monkeypatch, capsys, "a " * 600 + "\nHello\n")
    assert "the model takes" in streams.err and "/reset" in streams.err
    assert streams.out


@pytest.mark.parametrize(
    "flag", [["--prompt", "a"], ["--json"], ["--stop", "x"], ["--output", "-"]]
)
def test_chat_alone(capsys, flag):
    assert main([*CHAT, *flag]) == 2
    assert f"{flag[0]} does not go together with --chat" in capsys.readouterr().err


def test_the_system_prompt_comes_first_and_stays(monkeypatch, capsys):
    asked = []

    def seen(self, prompts, *args, **kwargs):
        asked.append(prompts[0])
        raise ZeroDivisionError

    monkeypatch.setattr(leapjax.LM, "generate", seen)
    monkeypatch.setattr("sys.stdin", io.StringIO("/reset\nHello\n"))
    with pytest.raises(ZeroDivisionError):
        main([*CHAT, "--system", "Be brief."])
    assert asked[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    capsys.readouterr()
    assert main(["--model", LLADA, "--prompt", "a", "--system", "Be brief."]) == 2
    assert "--system goes with --chat" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def answer(kinds, text="12\x1b + 5"):
    ids = [5] * len(kinds)
    return Completion(
        id=1,
        text=text,
        output_ids=ids,
        finish_reason="stop",
        steps=1,
        full_passes=1,
        nfe=1,
        commit_step=[0] * len(kinds),
        commit_kind=kinds,
        commit_confidence=[1.0] * len(kinds),
    )


def test_chat_on_a_terminal(monkeypatch, capsys):
    """Every kind is explained when it first appears; the plain answer stands behind the canvas."""
    lm, monitor = leapjax.load(LLADA), Terminal()
    answers = iter([answer(["anchor"]), answer(["anchor", "top1"]), answer(["top1", "anchor"])])
    monkeypatch.setattr(leapjax.LM, "generate", lambda *a, **k: [next(answers)])
    monkeypatch.setattr(canvas, "FRAME_S", 0)
    said = iter(["one", "/help", "two", "three"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said, None) or _end())
    monkeypatch.setattr("sys.stdin", Terminal())
    chatting.run(lm, leapjax.DecodeConfig(), sys.stdin, monitor)
    parts = monitor.getvalue().split("12? + 5\n")
    assert len(parts) == 4
    assert ["anchor:" in p for p in parts] == [True, False, False, False]
    assert ["top-1:" in p for p in parts] == [False, True, False, False]
    assert ["end of text" in p for p in parts] == [True, False, False, False]
    assert "[1 step, " in parts[1]
    assert chatting.HELP in capsys.readouterr().err


@pytest.mark.parametrize("number", [(), (15,)])
def test_ctrl_c_stops_the_answer_only_and_sigterm_all(monkeypatch, capsys, number):
    lm, monitor, asked = leapjax.load(LLADA), Terminal(), []

    def generate(self, prompts, *args, **kwargs):
        asked.append([m["content"] for m in prompts[0]["messages"]])
        if len(asked) == 1:
            raise KeyboardInterrupt(*number)
        return [answer(["anchor"])]

    monkeypatch.setattr(leapjax.LM, "generate", generate)
    monkeypatch.setattr(canvas, "FRAME_S", 0)
    said = iter(["one", "two"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said, None) or _end())
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(KeyboardInterrupt) if number else contextlib.nullcontext():
        chatting.run(lm, leapjax.DecodeConfig(), sys.stdin, monitor)
    assert asked == ([["one"]] if number else [["one"], ["two"]])
    assert ("stopped" in capsys.readouterr().err) is not bool(number)


def _end():
    raise EOFError


def test_samples_on_a_terminal_show_propagation_and_can_be_copied(monkeypatch):
    """The default setting on the default samples: several steps, LocalLeap's own commits."""
    monkeypatch.setattr(canvas, "FRAME_S", 0)
    lm, monitor, seen = leapjax.load(), Terminal(), []
    monkeypatch.setattr(canvas, "play", lambda screen, shown, **how: seen.append(shown))
    samples.run(lm, lm.default_config, monitor)
    text = " ".join(monitor.getvalue().split())
    assert len(seen) == samples.COUNT
    propagated = ["propagated" in shown.kinds for shown in seen]
    assert sum(propagated) >= 2 and max(shown.last for shown in seen) >= 3
    assert all(shown.last >= 2 for shown in seen)
    assert "4 of 4 right" in text and "propagated: near an anchor" in text
    for problem in samples.problems(samples.DRAWS["wordproblems"], 0):
        assert " ".join(problem.answer.split()) in text


def test_each_embedded_model_shows_problems_of_its_own_task(monkeypatch, tmp_path):
    """By name, as `--model dependency`; a folder of that name comes first."""
    lm, stream = leapjax.load("dependency"), io.StringIO()
    assert lm.path == leapjax.embedded_path("dependency")
    samples.run(lm, lm.default_config, stream)
    text = stream.getvalue()
    assert text.count("> Who waits in the line") == 2 == text.count("> Fill the square")
    assert "right" in text.splitlines()[-1] and "compiling not counted" in text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dependency").mkdir()
    assert main(["decode", "--model", "dependency", "--prompt", "A"]) == 2
