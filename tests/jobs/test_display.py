"""What people see of a running job."""

import io

import pytest

from leapjax.jobs import display
from leapjax.jobs.loop import Progress
from leapjax.jobs.summary import Summary


def progress(**changes):
    summary = Summary(answers=50, tokens=600, steps=200)
    fields = {"records": 150, "first": 100, "seconds": 60.0, "running": 7, "slots": 8}
    return Progress(summary, **(fields | changes))


def test_line():
    text = display.describe(progress(errors=2), 400)
    # 50 records in a minute, 250 to go.
    assert text == "10 tokens/s, 3.00 tokens per step, 7/8 slots, 5 min left, 2 bad"
    assert display.describe(progress(), None) == "10 tokens/s, 3.00 tokens per step, 7/8 slots"


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, 300),
        ({"first": 0}, 100),  # without an earlier run these 150 took one minute
        ({"records": 100}, None),  # nothing is known yet
        ({"records": 100, "rows_in_flight_done": 2.0}, 60 * 298 / 2),  # before the first answer
        ({"records": 100, "rows_in_flight_done": 2.0, "samples": 4}, 60 * 299.5 / 0.5),
        ({"records": 140, "ahead": 10}, 300),
        ({"records": 400}, 0),
        ({"seconds": 0.0}, None),  # rows of the first chunk, no time yet: not "0 s left"
    ],
)
def test_time_left(changes, expected):
    assert display.time_left(progress(**changes), 400) == expected


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert display.duration(seconds) == text


def test_lines_where_there_is_no_terminal(monkeypatch):
    stream, now = io.StringIO(), [1000.0]
    monkeypatch.setattr("leapjax.progress.time.monotonic", lambda: now[0])
    with display.shown(400, stream=stream) as show:
        for second in range(0, 150):
            now[0] = 1000.0 + second
            show(progress())
    assert stream.getvalue() == 2 * f"150 of 400 records, {display.describe(progress(), 400)}\n"


def test_bar_and_nothing():
    stream = io.StringIO()
    with display.shown(400, True, stream) as show:
        show(progress())
        show(progress(records=151))
    assert "151/400" in stream.getvalue() and "slots" in stream.getvalue()
    stream = io.StringIO()
    with display.shown(None, True, stream) as show:
        show(progress())
    assert "150 records" in stream.getvalue()
    stream = io.StringIO()
    with display.shown(400, False, stream) as show:
        show(progress())
    assert stream.getvalue() == ""
