"""One way to time: runs that alternate, summed up by median and range."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Name = TypeVar("Name")


def timed(run: Callable[[], Any]) -> float:
    """Seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(
    runs: Mapping[Name, Callable[[], Any]], rounds: int, pause_s: float = 0.0
) -> dict[Name, list[float]]:
    """Time several runs in turns, so that the machine's drift affects all of them alike.

    Every second round goes backwards, so that no run always follows the same neighbour.

    `runs`: name -> what is timed; each has run once before, so that it is compiled; `pause_s`: rest
    before each turn, in seconds. Returns the seconds of each run, one number a round.

    >>> seconds = alternate({"sorted": lambda: sorted("loop"), "list": lambda: list("loop")}, 3)
    >>> {name: len(times) for name, times in seconds.items()}
    {'sorted': 3, 'list': 3}
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for n in range(rounds):
        for name in runs if n % 2 == 0 else reversed([*runs]):
            time.sleep(pause_s)
            seconds[name].append(timed(runs[name]))
    return seconds


def summarise(values: list[float]) -> dict[str, float]:
    """Median, range and number of some timings.

    >>> summarise([2.0, 1.0, 4.0])
    {'median': 2.0, 'min': 1.0, 'max': 4.0, 'n': 3}
    """
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def ratios(over: Iterable[float], under: Iterable[float]) -> dict[str, float]:
    """Median and range of the ratios, round by round, of two runs that alternated."""
    return summarise([a / b for a, b in zip(over, under, strict=True)])


def spread(value: Mapping[str, float], digits: int = 2, scale: float = 1.0) -> str:
    """A summary as text: its median, and its range in brackets.

    `value`: from `summarise`; `scale`: what the numbers are multiplied by, such as 1000 for ms.

    >>> spread(summarise([0.0012, 0.001, 0.002]), 1, 1000)
    '1.2 (1.0-2.0)'
    """
    median, low, high = (f"{scale * value[k]:.{digits}f}" for k in ("median", "min", "max"))
    return f"{median} ({low}-{high})"
