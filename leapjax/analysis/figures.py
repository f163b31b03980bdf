"""The three figures, as PNG bytes: delayed decoding, determinism, its decay with distance."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from leapjax.analysis.summary import BANDS
from leapjax.evaluation.plot import figure as empty_figure

MOST_POLICIES = 4  # side by side, still readable
_BAND_COLOURS = dict(
    zip(
        ("all", *BANDS),
        ("#000000", "#882255", "#cc6677", "#ddaa33", "#44aa99", "#0072b2"),
        strict=True,
    )
)
_DISTANCE_STYLES = {
    "1 to 2": ("#003f6b", "o"),
    "3 to 4": ("#0072b2", "s"),
    "5 to 8": ("#56b4e9", "^"),
    "9 to 16": ("#e69f00", "v"),
    "17 and more": ("#d55e00", "D"),
    "no anchor": ("#777777", "x"),
}
LEAST = 30  # pairs below which a point is not drawn


def _figure(columns: int, height: float):
    return empty_figure(max(5.2 * columns, 6.5), height, dpi=120)


def _png(figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _title(name: str, run: Mapping[str, Any]) -> str:
    return f"{name}: {run['prompts']} prompts, {run['steps']:.1f} steps on average"


def delays(report: Mapping[str, Any]) -> bytes:
    """When proposals become final against when they are committed, and how long they wait.

    Args:
      report: as `leapjax analyze` writes it.
    """
    runs = report["runs"]
    figure = _figure(len(runs), 7.2)
    grid = figure.subplots(2, len(runs), squeeze=False)
    for (name, run), top, bottom in zip(runs.items(), grid[0], grid[1], strict=True):
        x = [100 * v for v in run["curve"]["passes"]]
        for key, label, colour in (
            ("stable", "proposal final and unchanged from here on", "#0072b2"),
            ("committed", "committed", "#d55e00"),
        ):
            points = run["curve"][key]
            top.plot(x, [_percent(p) for p in points], color=colour, label=label)
            _band(top, x, points, colour)
        top.set_title(_title(name, run), fontsize=10)
        top.set_xlabel("passes of the decode, %")
        top.set_ylabel("answer positions, %")
        top.set_ylim(0, 101)
        top.set_xlim(0, 100)
        top.grid(alpha=0.3)
        top.legend(fontsize=8, loc="lower right")
        counts = run["delay"]["answer"]["histogram"]
        total = max(sum(counts), 1)
        bottom.bar(
            range(len(counts)), [100 * v / total for v in counts], color="#0072b2", width=0.9
        )
        bottom.set_xlabel("passes between final proposal and commit, block active")
        bottom.set_ylabel("answer positions, %")
        bottom.grid(alpha=0.3, axis="y")
    return _png(figure)


def determinism(report: Mapping[str, Any]) -> bytes:
    """Consistency against confidence, a line for each distance from the nearest anchor.

    Args:
      report: as `leapjax analyze` writes it.
    """
    runs = report["runs"]
    figure = _figure(len(runs), 5.2)
    for axes, (name, run) in zip(
        figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True
    ):
        table = run["determinism"]["answer"]
        for n, (distance, (colour, marker)) in enumerate(_DISTANCE_STYLES.items()):
            cells = [(i + (n - 2.5) * 0.09, table[band][distance]) for i, band in enumerate(BANDS)]
            _points(axes, cells, colour, marker, distance)
        axes.set_xticks(range(len(BANDS)), BANDS, fontsize=8)
        axes.set_xlabel("confidence of the undecided position")
        axes.set_ylabel("proposal is the final token, % (95 %)")
        axes.set_title(_title(name, run), fontsize=10)
        axes.set_xlim(-0.5, len(BANDS) - 0.5)
        axes.set_ylim(0, 102)
        axes.grid(alpha=0.3)
        _legend(axes, "distance to the nearest anchor")
    return _png(figure)


def distance(report: Mapping[str, Any]) -> bytes:
    """Consistency against distance, a line for each band of confidence.

    Args:
      report: as `leapjax analyze` writes it.
    """
    runs = report["runs"]
    figure = _figure(len(runs), 5.2)
    for axes, (name, run) in zip(
        figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True
    ):
        for n, (band, points) in enumerate(run["distance"]["answer"].items()):
            label = "all confidences" if band == "all" else band
            # Beside each other, so that no band's interval hides another's.
            cells = [(x + (n - 2) * 0.1, point) for x, point in enumerate(points, 1)]
            _points(axes, cells, _BAND_COLOURS[band], "o", label, wide=band == "all")
        axes.set_xlabel("distance to the nearest anchor, positions")
        axes.set_ylabel("proposal is the final token, % (95 %)")
        axes.set_title(_title(name, run), fontsize=10)
        axes.set_ylim(0, 102)
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        _legend(axes, "confidence")
    return _png(figure)


def _percent(point) -> float:
    return float("nan") if point["value"] is None else 100 * point["value"]


def _band(axes, x, points, colour) -> None:
    if all(p["interval"] for p in points):
        low, high = ([100 * p["interval"][k] for p in points] for k in (0, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _points(axes, cells, colour, marker, label, wide=False) -> None:
    kept = [(x, p) for x, p in cells if p["n"] >= LEAST]
    if not kept:
        return
    x, y = [x for x, _ in kept], [_percent(p) for _, p in kept]
    ends = [p["interval"] or [p["value"]] * 2 for _, p in kept]
    error = [
        [max(v - 100 * e[0], 0) for v, e in zip(y, ends, strict=True)],
        [max(100 * e[1] - v, 0) for v, e in zip(y, ends, strict=True)],
    ]
    axes.errorbar(
        x,
        y,
        yerr=error,
        fmt=f"{marker}-",
        color=colour,
        label=label,
        markersize=4.5,
        linewidth=2 if wide else 1,
        elinewidth=0.8,
        capsize=2,
    )


def _legend(axes, title: str) -> None:
    """What the lines are, or that there are too few pairs for any."""
    if axes.get_legend_handles_labels()[1]:
        # Below the axes: inside, it would cover points whatever the numbers are.
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "frameon": False}
        axes.legend(fontsize=8, title=title, title_fontsize=8, ncols=3, **below)
    else:
        text = f"fewer than {LEAST} pairs everywhere"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", fontsize=9)
