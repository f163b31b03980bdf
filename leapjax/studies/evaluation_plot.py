"""Every row beside greedy: the paired difference in accuracy, and the steps.

A row of the table has a line of its own, so that rows with equal numbers don't hide each other.
Small grey points are the same difference under each template.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from leapjax.caches import CACHES
from leapjax.studies import plots
from leapjax.studies.evaluation import is_baseline

_MARKERS = (("o", "#0072b2"), ("s", "#e69f00"), ("^", "#d55e00"), ("D", "#009e73"))
_CACHES = dict(zip(CACHES, itertools.cycle(_MARKERS), strict=False))
LEAST_POINTS = 2.0  # of a per cent, to either side of greedy: noise must not fill an axis


def rows_figure(report: Mapping[str, Any]):
    """Draw the paired differences to greedy, and beside them the mean steps on a log axis."""
    # By steps, the fewest at the bottom, which is where matplotlib's y axis begins.
    rows = sorted(report["rows"], key=lambda r: r["groups"]["all"]["eos_steps"])
    numbers = [r["groups"]["all"] for r in rows]
    all_steps = [g["eos_steps"] for g in numbers]
    # A single problem's interval has no bounds.
    intervals = [[min(max(x, -1.0), 1.0) for x in g["difference_interval"]] for g in numbers]
    size = 9.5, 1.7 + 0.34 * len(rows)
    fig, [[left, right]] = plots.panels(1, 2, *size, sharey=True, width_ratios=(3, 2))
    for y, (row, g, interval) in enumerate(zip(rows, numbers, intervals, strict=True)):
        marker, colour = _CACHES[row["cache"]]
        if not is_baseline(row):
            each = [n for name, n in row["groups"].items() if name.startswith("template ")]
            for one in each:
                left.plot([100 * one["difference"]], [y], "o", color="0.6", markersize=3, zorder=1)
            value, style = g["difference"], {"fmt": marker, "color": colour, "capsize": 3}
            left.errorbar([100 * value], [y], xerr=plots.bars([value], [interval]), **style)
        right.plot([g["eos_steps"]], [y], marker, color=colour)
        share = f"{g['eos_steps']:.1f} ({100 * g['eos_steps_share']:.1f} %)"
        most = y > 0 and g["eos_steps"] > 0.6 * all_steps[-1]
        place = {"xytext": (-8 if most else 8, 0), "ha": "right" if most else "left"}
        place |= {"textcoords": "offset points", "va": "center", "fontsize": 8}
        right.annotate(share, (g["eos_steps"], y), **place)
    several = len({r["cache"] for r in rows}) > 1
    names = [r["label"] + f", cache {r['cache']}" * several for r in rows]
    labels = [f"{n}: {100 * g['accuracy']:.1f} %" for n, g in zip(names, numbers, strict=True)]
    left.set_yticks(range(len(rows)), labels, fontsize=9)
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.axvline(0, color="black", linewidth=1)
    shown = [100 * abs(x) for ends in intervals for x in ends]
    shown += [100 * abs(n["difference"]) for r in rows for n in r["groups"].values()]
    reach = 1.08 * max([LEAST_POINTS, *shown])
    left.set_xlim(-reach, reach)
    left.set_xlabel("accuracy − greedy's on the same problems,\npoints (95 % interval)")
    low, high = 0.7 * all_steps[0], 2 * all_steps[-1]
    right.set_xscale("log")
    right.set_xlim(low, high)
    ticks = (d * 10**e for e in range(6) for d in (1, 2, 5))
    right.set_xticks([t for t in ticks if low <= t <= high])
    right.minorticks_off()
    right.xaxis.set_major_formatter("{x:g}")
    right.set_xlabel("mean steps to the first eos\n(log scale; share of greedy's)")
    s = report["settings"]
    about = f"{s['task']}, {s['split']}, n = {report['n']}, canvas {s['gen_length']}"
    if len(report.get("templates", ())) > 1:
        about += f", {len(report['templates'])} templates (grey)"
    fig.suptitle(f"{about}; accuracy behind each name", fontsize=10)
    return fig
