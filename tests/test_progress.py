"""What is shown to people who wait."""

import io
import signal
import sys
import time

import pytest

from leapjax import progress, signals
from leapjax.cli.decode import main


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_busy_is_silent_unless_a_command_asks():
    with progress.busy("x"):
        pass  # nothing to see, and nothing raised
    stream = Terminal()
    with progress.announced(stream):
        with progress.busy("loading m"), progress.busy("compiling"):
            pass
        assert stream.getvalue() == "loading m …\ncompiling …\n"
    with progress.busy("y"):
        assert "y" not in stream.getvalue()


def test_busy_without_a_terminal_is_a_line_where_it_takes_long():
    stream = io.StringIO()
    with progress.announced(stream, patience=0.05):
        with progress.busy("short"):
            pass
        with progress.busy("long"):
            deadline = time.monotonic() + 20
            while "long" not in stream.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
    assert stream.getvalue() == "long …\n"


def test_counted_writes_no_bars_into_files(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with progress.counted("greedy", 300, "answer", stream) as show:
        for second in range(130):
            now[0] = second
            show(second)
    assert stream.getvalue() == "greedy: 60 of 300 answers\ngreedy: 120 of 300 answers\n"
    stream = io.StringIO()
    with progress.counted("greedy", 1, "pass", stream) as show:
        now[0] = 300
        show(0)
    assert stream.getvalue() == "greedy: 0 of 1 pass\n"
    stream = Terminal()
    with progress.counted("greedy", 4, "answer", stream) as show:
        show(2)
        show(1, "slow")
    assert "\r" in stream.getvalue() and "slow" in stream.getvalue()
    with progress.counted("none", 0, "answer", Terminal()) as show:
        show(0)


def test_decode_says_what_it_waits_for(monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "say", lambda line, stream: shown.append(line))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["--prompt", "Tom has 2 eggs and buys 3. How many eggs now?"]) == 0
    wanted = ["loading the embedded model …", "compiling for prompts up to 32 tokens …"]
    assert [line for line in shown if "kernels" not in line] == wanted


def test_a_signal_is_acknowledged_by_whoever_goes_on(monkeypatch, capfd):
    monkeypatch.setattr(signals, "QUICK", 0.02)
    before = signal.signal(signal.SIGINT, lambda number, frame: None)  # as if Python had no turn
    try:
        with signals.Listener("leapjax x: stopping"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.3)
        assert capfd.readouterr().err == "leapjax x: stopping\n"
        with signals.Signals(prog="leapjax decode") as noted:
            assert noted.requested() is None
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert noted.requested() == signal.SIGTERM
        assert capfd.readouterr().err == "leapjax decode: saving; again to stop now\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_who_stops_at_once_says_nothing_more(capfd):
    with pytest.raises(KeyboardInterrupt), signals.Listener("leapjax x: stopping"):
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""
