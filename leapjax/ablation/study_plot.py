"""Plots of a study: curves, differences at equal steps, and commits by distance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapjax.ablation.plot import figure, greedy_line, save, title

LEAST_COMMITS = 10  # below which a distance is left out: its interval spans nearly everything
LEAST_DIFFERENCE = 1.0  # points to either side of zero: noise must not fill an axis
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vP"


def curves(report: Mapping[str, Any], path: Path) -> None:
    """Draw the curves, and below them each difference at equal mean steps.

    Args:
      report: of a study.
      path: the PNG.
    """
    fig = figure(8.5, 8)
    above, below = fig.subplots(2, 1, sharex=True)
    look = {}
    for n, curve in enumerate(report["curves"]):
        look[curve["name"]] = _COLOURS[n % 6], _MARKERS[n % 6]
        points = sorted(curve["points"], key=lambda p: p["steps"])
        above.plot(
            [p["steps"] for p in points],
            [100 * p["accuracy"] for p in points],
            f"{_MARKERS[n % 6]}-",
            color=_COLOURS[n % 6],
            markersize=5,
            label=curve["label"],
        )
    greedy_line(above, report["greedy"])
    above.set_ylabel("accuracy, %")
    above.legend(fontsize=8)
    above.set_title(f"{report['title']} {title(report)}", fontsize=10)
    pairs = list(dict.fromkeys((m["curve"], m["control"]) for m in report["matched"]))
    for n, (curve, control) in enumerate(pairs):
        these = [m for m in report["matched"] if (m["curve"], m["control"]) == (curve, control)]
        these = [m for m in these if m["difference"] is not None]
        # The side that tells the pairs apart: the control, or what is compared with one control.
        one_control = len({c for _, c in pairs}) == 1
        colour, marker = look[curve if one_control else control]
        shift = 0.02 * (n - (len(pairs) - 1) / 2)  # so that bars at the same steps don't overlap
        below.errorbar(
            [m["steps"] + shift for m in these],
            [100 * m["difference"] for m in these],
            yerr=[
                [100 * (m["difference"] - m["interval"][0]) for m in these],
                [100 * (m["interval"][1] - m["difference"]) for m in these],
            ],
            fmt=marker,
            color=colour,
            capsize=3,
            markersize=5,
            label=f"{curve} − {control}",
        )
    below.axhline(0, color="black", linewidth=1)
    low, high = below.get_ylim()
    below.set_ylim(min(low, -LEAST_DIFFERENCE), max(high, LEAST_DIFFERENCE))
    below.set_xlabel("mean steps over the whole canvas")
    below.set_ylabel("accuracy difference at equal steps,\npoints (95 % interval)")
    below.legend(fontsize=8)
    for ax in (above, below):
        ax.grid(alpha=0.3)
    save(fig, path)


def commits(report: Mapping[str, Any], path: Path) -> None:
    """Draw the share of clean commits that differ from greedy's token, by distance.

    Args:
      report: of a study with `commits`.
      path: the PNG.
    """
    parts = report["commits"]
    fig = figure(4.8 * len(parts), 5)
    for ax, part in zip(fig.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        rows = [r for r in part["rows"] if r["clean"]]
        distant = [r for r in rows if r["distance"] is not None]
        near = [r for r in distant if r["commits"] >= LEAST_COMMITS]
        left_out = f" (distances with {LEAST_COMMITS} commits and more)" * (near != distant)
        ax.errorbar(
            [r["distance"] for r in near],
            [100 * r["share"] for r in near],
            yerr=[
                # Rounding may put an end of the interval on the wrong side of 0 or 1.
                [max(100 * (r["share"] - r["interval"][0]), 0) for r in near],
                [max(100 * (r["interval"][1] - r["share"]), 0) for r in near],
            ],
            fmt="o",
            color="#d55e00",
            capsize=3,
            label="propagated" + left_out,
        )
        ax.plot(
            [r["distance"] for r in near],
            [100 * (1 - r["confidence"]) for r in near],
            "x",
            color="#999999",
            label="propagated: 1 − mean confidence",
        )
        styles = {"anchor": ("--", "#0072b2"), "top1": (":", "#009e73")}
        for r in rows:
            if r["kind"] in styles:
                style, colour = styles[r["kind"]]
                text = f"{r['kind']}, {100 * r['share']:.1f} %"
                ax.axhline(100 * r["share"], linestyle=style, color=colour, label=text)
        ax.set_title(part["label"], fontsize=9)
        ax.set_xlabel("distance to the nearest anchor, positions")
        ax.set_ylabel("clean commits that differ from greedy's, %")
        ax.set_ylim(bottom=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    fig.suptitle(title(report), fontsize=10)
    save(fig, path)
