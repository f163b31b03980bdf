"""Accuracy against steps, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapjax.errors import UserError

_COLOURS = {  # tell apart without red and green
    "greedy": "#000000",
    "schedule-2": "#56b4e9",
    "schedule-4": "#0072b2",
    "schedule-8": "#003f6b",
    "threshold": "#e69f00",
    "localleap": "#d55e00",
    "factor": "#f0e442",
    "entropy-bound": "#cc79a7",
    "hierarchy": "#009e73",
    "certainty-prior": "#999999",
    "position-calibration": "#666666",
    "klass": "#882255",
    "slowfast": "#44aa99",
    "credit": "#aa7744",
    "wino": "#332288",
}
_MARKERS = {"none": "o", "prefix": "s", "dual": "^"}


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy, with its interval, against the mean steps to the first eos.

    Args:
      report: as `leapjax evaluate` writes it.
      path: the PNG.

    Raises:
      UserError: matplotlib is not installed, or the file can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise UserError("the plot needs matplotlib; pip install leapjax[plots]") from e
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    caches = {row["cache"] for row in report["rows"]}
    for row in report["rows"]:
        g = row["groups"]["all"]
        low, high = (100 * x for x in g["accuracy_interval"])
        y = 100 * g["accuracy"]
        label = row["label"] + (f", cache {row['cache']}" if caches != {"none"} else "")
        axes.errorbar(
            [g["eos_steps"]],
            [y],
            yerr=[[max(y - low, 0)], [max(high - y, 0)]],
            fmt=_MARKERS[row["cache"]],
            color=_COLOURS[row["policy"]],
            markersize=7,
            capsize=4,
            label=f"{label}: {100 * g['eos_steps_share']:.1f} % of the steps",
        )
    s = report["settings"]
    axes.set_xlabel("mean steps to the first eos")
    axes.set_ylabel("accuracy, % (95 % interval)")
    axes.set_title(
        f"{s['task']}, {s['split']}, n = {report['n']}, canvas {s['gen_length']}", fontsize=11
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    try:
        figure.savefig(path)
    except OSError as e:
        raise UserError(f"{path}: can't be written ({e.strerror or e})") from e
