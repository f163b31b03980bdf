"""How far a job is, for people: a bar on a terminal, else a line every minute."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from leapjax.jobs.loop import Progress
from leapjax.progress import bar, rarely
from leapjax.wording import plural


def describe(progress: Progress, total: int | None) -> str:
    """Rates, slots in use and the time left, given the records of the input (None if unknown)."""
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
    """Seconds until the job ends, None if unknown.

    Rows in flight count by their finished blocks, so that an estimate exists before the first
    answer. Answers that wait for an earlier one count in full.
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
      total: records of the input, None if unknown.
      wanted: True shows a bar, False nothing; None shows a bar on a terminal, else lines.
      stream: default stderr.

    Yields:
      A function that takes the progress; it may be called often.
    """
    out: TextIO = stream or sys.stderr
    if wanted is False:
        yield lambda progress: None
        return
    if wanted is None and not out.isatty():
        due, of = rarely(), "" if total is None else f" of {total}"

        def tell(progress: Progress) -> None:
            if due():  # first after a minute, when something is known
                line = f"{progress.records}{of} records, {describe(progress, total)}"
                print(line, file=out, flush=True)

        yield tell
        return

    def amount(done: int) -> str:
        return plural(done, "record") if total is None else f"{done}/{total}"

    with bar("records", total, amount, out, forecast=False) as show:
        yield lambda progress: show(progress.records, note=describe(progress, total))
