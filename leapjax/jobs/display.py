"""How far a job is, for people: a bar on a terminal, else a line every minute."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from leapjax.jobs.loop import Progress
from leapjax.progress import rarely

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
_COUNT = "{n_fmt} {unit}s [{elapsed}{postfix}]"


def describe(progress: Progress, total: int | None) -> str:
    """Rates, slots in use and the time left.

    Args:
      progress: of the job.
      total: records of the input, None if nobody knows.
    """
    summary = progress.summary
    parts = []
    if progress.seconds > 0:  # a job of one chunk is over when its clock starts
        parts.append(f"{summary.tokens / progress.seconds:.0f} tokens/s")
    parts += [
        f"{summary.tokens / max(summary.steps, 1):.2f} tokens per step",
        f"{progress.running}/{progress.slots} slots",
    ]
    left = time_left(progress, total)
    if left is not None:
        parts.append(f"{duration(left)} left")
    if progress.errors:
        parts.append(f"{progress.errors} bad")
    return ", ".join(parts)


def time_left(progress: Progress, total: int | None) -> float | None:
    """Seconds until the job ends, None if nobody knows yet.

    Rows that are on their way count by the blocks that are finished, so that there is an
    estimate before the first answer. Answers that wait for an earlier one count in full.

    Args:
      progress: of the job.
      total: records of the input, None if nobody knows.
    """
    if total is None:
        return None
    through = progress.records - progress.first
    # Rows to records: several samples are one record.
    done = through + (progress.ahead + progress.rows_in_flight_done) / max(progress.samples, 1)
    if done <= 0 or progress.seconds <= 0:
        return None  # what the first chunk brought is counted before its time is
    return progress.seconds * max(total - progress.first - done, 0) / done


def duration(seconds: float) -> str:
    """A time as `2 h 05 min`, `12 min` or `40 s`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextlib.contextmanager
def shown(
    total: int | None, wanted: bool | None = None, stream: TextIO | None = None
) -> Iterator[Callable[[Progress], None]]:
    """Show progress while in the context.

    Args:
      total: records of the input, None if nobody knows.
      wanted: show a bar, or nothing; None is a bar on a terminal, else lines.
      stream: default stderr.

    Yields:
      What takes the progress, as often as it likes.
    """
    out: TextIO = stream or sys.stderr
    if wanted is False:
        yield lambda progress: None
    elif wanted or out.isatty():
        with _bar(total, out) as show:
            yield show
    else:
        yield _lines(total, out)


@contextlib.contextmanager
def _bar(total: int | None, stream: TextIO) -> Iterator[Callable[[Progress], None]]:
    from tqdm import tqdm

    with tqdm(
        total=total,
        unit="record",
        file=stream,
        dynamic_ncols=True,
        bar_format=_COUNT if total is None else _BAR,
    ) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(describe(progress, total), refresh=False)
            bar.update(progress.records - bar.n)

        yield show


def _lines(total: int | None, stream: TextIO) -> Callable[[Progress], None]:
    due = rarely()  # the first comes with the first minute, when something is known

    def show(progress: Progress) -> None:
        if due():
            of = "" if total is None else f" of {total}"
            line = f"{progress.records}{of} records, {describe(progress, total)}"
            print(line, file=stream, flush=True)

    return show
