"""Every row beside greedy: the paired difference in accuracy, and the steps, as a PNG.

A row of the table has a line of its own, so that rows with equal numbers don't hide each other.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.caches import CACHES
from leapjax.errors import UserError
from leapjax.evaluation.settings import BASELINE

_MARKERS = (("o", "#0072b2"), ("s", "#e69f00"), ("^", "#d55e00"), ("D", "#009e73"))
_CACHES = dict(zip(CACHES, itertools.cycle(_MARKERS), strict=False))
LEAST_POINTS = 2.0  # of a percent, to either side of greedy: noise must not fill an axis


def available() -> bool:
    """Whether there is something to draw with; a study without it leaves its plots out."""
    return importlib.util.find_spec("matplotlib") is not None


def figure(width: float, height: float, dpi: int = 130):
    """An empty figure that needs no display.

    Args:
      width: inches.
      height: inches.
      dpi: pixels an inch.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise UserError("plots need matplotlib; pip install 'leapjax[plots]'") from e
    out = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(out)
    return out


def rows_figure(report: Mapping[str, Any]):
    """Draw the paired differences to greedy, and beside them the mean steps on a log axis.

    Args:
      report: as `leapjax evaluate` writes it.

    Returns:
      The matplotlib figure: axes of differences, axes of steps.

    Raises:
      UserError: matplotlib is not installed.
    """
    # By steps, the fewest at the bottom, which is where matplotlib's y axis begins.
    rows = sorted(report["rows"], key=lambda r: r["groups"]["all"]["eos_steps"])
    fig = figure(9.5, 1.7 + 0.34 * len(rows))
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for y, row in enumerate(rows):
        g = row["groups"]["all"]
        marker, colour = _CACHES[row["cache"]]
        if (row["policy"], row["cache"]) != BASELINE:
            low, high = _points(g)
            value = 100 * g["difference"]
            bar = [[max(value - low, 0)], [max(high - value, 0)]]
            left.errorbar([value], [y], xerr=bar, fmt=marker, color=colour, capsize=3)
        right.plot([g["eos_steps"]], [y], marker, color=colour)
        share = f"{g['eos_steps']:.1f} ({100 * g['eos_steps_share']:.1f} %)"
        most = y > 0 and g["eos_steps"] > 0.6 * rows[-1]["groups"]["all"]["eos_steps"]
        place = {"xytext": (-8 if most else 8, 0), "ha": "right" if most else "left"}
        place |= {"textcoords": "offset points", "va": "center", "fontsize": 8}
        right.annotate(share, (g["eos_steps"], y), **place)
    labels = [f"{_label(r, report)}: {100 * r['groups']['all']['accuracy']:.1f} %" for r in rows]
    left.set_yticks(range(len(rows)), labels, fontsize=9)
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.axvline(0, color="black", linewidth=1)
    ends = [abs(x) for r in rows for x in _points(r["groups"]["all"])]
    reach = 1.08 * max([LEAST_POINTS, *ends])
    left.set_xlim(-reach, reach)
    left.set_xlabel("accuracy − greedy's on the same problems,\npoints (95 % interval)")
    log_steps(right, [r["groups"]["all"]["eos_steps"] for r in rows])
    right.set_xlabel("mean steps to the first eos\n(log scale; share of greedy's)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    s = report["settings"]
    about = f"{s['task']}, {s['split']}, n = {report['n']}, canvas {s['gen_length']}"
    fig.suptitle(f"{about}; accuracy behind each name", fontsize=10)
    return fig


def log_steps(axes, values: Sequence[float]) -> None:
    """Put steps on a logarithmic x axis that is labelled with plain numbers.

    Args:
      axes: matplotlib's.
      values: the steps to be shown, positive.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = 0.7 * min(values), 2 * max(values)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [d * 10**e for e in range(6) for d in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _points(numbers: Mapping[str, Any]) -> list[float]:
    """The difference's interval in points; a single problem's has no bounds."""
    return [min(max(100 * x, -100.0), 100.0) for x in numbers["difference_interval"]]


def _label(row: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    several = len({r["cache"] for r in report["rows"]}) > 1
    return row["label"] + (f", cache {row['cache']}" if several else "")


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write `rows_figure` as PNG.

    Args:
      report: as `leapjax evaluate` writes it.
      path: the PNG.

    Raises:
      UserError: matplotlib is not installed, or the file can't be written.
    """
    fig = rows_figure(report)
    try:
        fig.savefig(path)
    except OSError as e:
        raise UserError(f"{path}: can't be written ({e.strerror or e})") from e
