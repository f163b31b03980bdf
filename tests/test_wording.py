import pytest

from leapjax.jobs.summary import Summary
from leapjax.serve.refreshes import Refreshes
from leapjax.wording import plural, times_fewer


def test_counts_agree_with_their_nouns():
    assert [plural(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert [plural(n, "pass") for n in (1, 2)] == ["1 pass", "2 passes"]
    assert plural(1, "bad record") == "1 bad record" and plural(3, "box") == "3 boxes"


@pytest.mark.parametrize(
    "ours, theirs, said",
    [
        (2, 32, "16x fewer"),
        (10, 95, "9.5x fewer"),
        (100, 999, "10x fewer"),
        (100, 104, "as many"),
        (32, 32, "as many"),
        (100, 150, "1.5x fewer"),
        (64, 32, "2.0x more"),
        (3, 0, "as many"),
    ],
)
def test_times_fewer(ours, theirs, said):
    assert times_fewer(ours, theirs) == said


def test_summary_line():
    one = Summary(answers=1, tokens=1, steps=1, committed=16, seconds=2.0).line()
    assert one == (
        "1 answer, 1 token in 2.0 s (0.5 tokens/s, compiling included), 1.00 tokens per step, "
        "16x fewer passes than one token a step"
    )
    greedy = Summary(answers=2, tokens=30, steps=64, committed=64, seconds=2.0).line()
    assert greedy.endswith("as many passes as one token a step")
    cached = Refreshes(8, 10, 9, window_work=30.0, refresh_work=10.0)
    line = Summary(answers=1, tokens=1, steps=1, committed=1, edits=1, refreshes=cached).line()
    assert line.endswith(
        "one token a step, 1 edit, 10 rows refreshed, 9 wanted (about 25% of the time)"
    )
    assert Summary(answers=2).line() == "2 answers, nothing decoded"
