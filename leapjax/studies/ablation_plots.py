"""Plots of a grid (heat maps, Pareto front) and of a study (curves, differences, commits)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.studies import plots
from leapjax.studies.plots import percents, short

MOST_PANELS = 8  # beside each other, still readable
LEAST_COMMITS = 10  # below which a distance is left out: its interval spans nearly everything
LEAST_DIFFERENCE = 1.0  # points to either side of zero: noise must not fill an axis
_LOOKS = tuple(
    zip(("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"), "osD^vP", strict=True)
)


def _several(axes: Mapping[str, Sequence[Any]]) -> list[str]:
    """Names of the axes with more than one value."""
    return [name for name, values in axes.items() if len(values) > 1]


def heat_map(report: Mapping[str, Any]):
    """Draw accuracy above steps over the first two axes, a panel for each value of the others.

    A quantity that is the same at every point has no panels; the title tells its value. The
    colours of accuracy span the points' 95 % intervals, so that noise looks like noise.

    Args:
      report: of a grid.

    Returns:
      The figure; None without two axes with several values, or with too many panels.
    """
    axes, points = report["axes"], report["points"]
    names = _several(axes)
    panels = list(itertools.product(*(axes[name] for name in names[2:])))
    if len(names) < 2 or len(panels) > MOST_PANELS:
        return None
    head, shown = [plots.title(report)], []
    for field, factor, colours, label, unit in (
        ("accuracy", 100, "viridis", "accuracy", "%"),
        ("steps", 1, "cividis", "mean steps", ""),
    ):
        values = [factor * p[field] for p in points]
        if max(values) - min(values) < 1e-9:
            head.append(f"{label} {values[0]:.1f} {unit}".rstrip() + " at every point")
            continue
        ends = [factor * x for p in points for x in p.get(f"{field}_interval", [p[field]])]
        scale = {"cmap": colours, "vmin": min(ends), "vmax": max(ends)}
        shown.append((field, factor, scale, label + f", {unit}" * bool(unit)))
    if not shown:
        return None
    wide, high = 0.52 * len(axes[names[1]]) + 0.6, 0.42 * len(axes[names[0]]) + 1.1
    fig = plots.figure(max(2.6, wide) * len(panels) + 1.6, len(shown) * max(2.4, high) + 0.3)
    grid = fig.subplots(len(shown), len(panels), squeeze=False)
    for cells, (field, factor, scale, label) in zip(grid, shown, strict=True):
        for ax, panel in zip(cells, panels, strict=True):
            _heat_panel(ax, report, names, panel, field, factor, scale)
        cells[0].set_ylabel(names[0])
        for ax in cells[1:]:
            ax.set_yticklabels([])
        fig.colorbar(cells[0].images[0], ax=list(cells), label=label)
    for ax, panel in zip(grid[0], panels, strict=True):
        pairs = zip(names[2:], panel, strict=True)
        ax.set_title(", ".join(f"{n} {short(v)}" for n, v in pairs), fontsize=9)
    for ax in grid[-1]:
        ax.set_xlabel(names[1])
    fig.suptitle("; ".join(head), fontsize=10)
    return fig


def _heat_panel(ax, report, names, panel, field, factor, scale) -> None:
    """One panel, with its numbers in the cells; a point that was left out is grey."""
    y, x, *others = names
    lines, columns = report["axes"][y], report["axes"][x]
    found = {
        (p["values"].get(y), p["values"].get(x)): factor * p[field]
        for p in report["points"]
        if all(p["values"].get(n) == v for n, v in zip(others, panel, strict=True))
    }
    values = [[found.get((a, b), float("nan")) for b in columns] for a in lines]
    ax.imshow(values, aspect="auto", **scale)
    ax.set_facecolor("#dddddd")
    for (i, row), (j, _) in itertools.product(enumerate(values), enumerate(columns)):
        if (value := row[j]) == value:
            colour = "white" if value < (scale["vmin"] + scale["vmax"]) / 2 else "black"
            style = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
            ax.text(j, i, f"{value:.1f}", **style)
    ax.set_xticks(range(len(columns)), [short(v) for v in columns], fontsize=8)
    ax.set_yticks(range(len(lines)), [short(v) for v in lines], fontsize=8)


def pareto(report: Mapping[str, Any], best: Sequence[Mapping[str, Any]]):
    """Draw accuracy against mean steps, every point, greedy, and the front with its settings.

    Args:
      report: of a grid.
      best: the points on the Pareto front, fewest steps first.

    Returns:
      The figure.
    """
    fig, [[ax]] = plots.panels(1, 1, 9, 5.4)
    points = report["points"]
    steps, shares = [p["steps"] for p in points], percents([p["accuracy"] for p in points])
    ax.scatter(steps, shares, s=18, color="#56b4e9", label=f"{len(points)} points of the grid")
    steps, shares = [p["steps"] for p in best], [p["accuracy"] for p in best]
    style = {"fmt": "o-", "color": "#d55e00", "label": "Pareto front (95 % interval)"}
    ends = [p["accuracy_interval"] for p in best]
    plots.points(ax, steps, shares, ends, **style, markersize=6)
    for base in report["greedy"]:
        plots.greedy_line(ax, base)
    names = _several(report["axes"])
    for number, p in enumerate(best, 1):
        values = ", ".join(f"{n} {short(v)}" for n, v in p["values"].items() if n in names)
        ax.plot([], [], " ", label=f"{number}: {values}")
        place = p["steps"], 100 * p["accuracy"]
        ax.annotate(str(number), place, xytext=(5, -11), textcoords="offset points", fontsize=9)
    ax.set(xlabel=plots.STEPS, ylabel=plots.ACCURACY)
    ax.set_title(plots.title(report), fontsize=10)
    plots.legend_below(ax, 0.12, ncols=2)
    return fig


def curves(report: Mapping[str, Any]):
    """Draw the curves of a study, and below them each difference at equal mean steps."""
    fig, [[above], [below]] = plots.panels(2, 1, 8.5, 8, sharex=True)
    looks = dict(zip((c["name"] for c in report["curves"]), itertools.cycle(_LOOKS), strict=False))
    for curve in report["curves"]:
        colour, marker = looks[curve["name"]]
        points = sorted(curve["points"], key=lambda p: p["steps"])
        shares = percents([p["accuracy"] for p in points])
        style = {"color": colour, "markersize": 5, "label": curve["label"]}
        above.plot([p["steps"] for p in points], shares, f"{marker}-", **style)
    plots.greedy_line(above, report["greedy"])
    above.set_ylabel(plots.ACCURACY)
    above.legend(fontsize=8)
    above.set_title(f"{report['title']} {plots.title(report)}", fontsize=10)
    pairs = list(dict.fromkeys((m["curve"], m["control"]) for m in report["matched"]))
    one_control = len({control for _, control in pairs}) == 1
    for n, (curve, control) in enumerate(pairs):
        these = [m for m in report["matched"] if (m["curve"], m["control"]) == (curve, control)]
        these = [m for m in these if m["difference"] is not None]
        # The side that tells the pairs apart: the control, or what is compared with one control.
        colour, marker = looks[curve if one_control else control]
        shift = 0.02 * (n - (len(pairs) - 1) / 2)  # so that bars at the same steps don't overlap
        at, values = [m["steps"] + shift for m in these], [m["difference"] for m in these]
        style = {"fmt": marker, "color": colour, "label": f"{curve} − {control}"}
        plots.points(below, at, values, [m["interval"] for m in these], **style, markersize=5)
    below.axhline(0, color="black", linewidth=1)
    low, high = below.get_ylim()
    below.set_ylim(min(low, -LEAST_DIFFERENCE), max(high, LEAST_DIFFERENCE))
    below.set_xlabel(plots.STEPS)
    below.set_ylabel("accuracy difference at equal steps,\npoints (95 % interval)")
    below.legend(fontsize=8)
    return fig


def commits(report: Mapping[str, Any]):
    """Draw the share of clean commits that differ from greedy's token, by distance."""
    parts = report["commits"]
    fig, [line] = plots.panels(1, len(parts), 4.8 * len(parts), 5)
    for ax, part in zip(line, parts, strict=True):
        rows = [r for r in part["rows"] if r["clean"]]
        distant = [r for r in rows if r["distance"] is not None]
        near = [r for r in distant if r["commits"] >= LEAST_COMMITS]
        left_out = f" (distances with {LEAST_COMMITS} commits and more)" * (near != distant)
        at, shares = [r["distance"] for r in near], [r["share"] for r in near]
        style = {"fmt": "o", "color": "#d55e00", "label": "propagated" + left_out}
        plots.points(ax, at, shares, [r["interval"] for r in near], **style)
        style = {"color": "#999999", "label": "propagated: 1 − mean confidence"}
        ax.plot(at, percents([1 - r["confidence"] for r in near]), "x", **style)
        styles = {"anchor": ("--", "#0072b2"), "top1": (":", "#009e73")}
        for r in rows:
            if r["kind"] in styles:
                line, colour = styles[r["kind"]]
                text = f"{r['kind']}, {100 * r['share']:.1f} %"
                ax.axhline(100 * r["share"], linestyle=line, color=colour, label=text)
        ax.set_title(part["label"], fontsize=9)
        ax.set(xlabel="distance to the nearest anchor, positions")
        ax.set(ylabel="clean commits that differ from greedy's, %")
        ax.set_ylim(bottom=0)
        plots.whole_numbers(ax)
        plots.legend_below(ax, 0.16)
    fig.suptitle(plots.title(report), fontsize=10)
    return fig
