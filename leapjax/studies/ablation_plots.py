"""Plots of a grid: heat maps, Pareto fronts, commits that differ from greedy's."""

import itertools
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from leapjax.studies import plots
from leapjax.studies.plots import percents
from leapjax.studies.statistics import front
from leapjax.studies.tables import short

MOST_PANELS = 8  # beside each other, still readable
LEAST_COMMITS = 10  # below which a distance is left out: its interval spans nearly everything
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

    None without two axes with several values, or with too many panels.
    """
    axes, points, names = report["axes"], report["points"], _several(report["axes"])
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
    title = textwrap.fill("; ".join(head), int(12 * fig.get_figwidth()))  # letters an inch
    fig.suptitle(title, fontsize=10)
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


def name(point: Mapping[str, Any], axes: Collection[str] | None = None) -> str:
    """A point's values in words, of all its axes or of those given."""
    values = point["values"].items()
    return ", ".join(f"{n} {short(v)}" for n, v in values if axes is None or n in axes)


def pareto(report: Mapping[str, Any]):
    """Draw accuracy against steps, with the front of each policy where it is an axis."""
    fig, [[ax]] = plots.panels(1, 1, 9, 5.4)
    names, groups, number = _several(report["axes"]), {}, 0
    for p in report["points"]:
        groups.setdefault(p["values"]["policy"] if "policy" in names else "", []).append(p)
    for (policy, points), (colour, marker) in zip(groups.items(), itertools.cycle(_LOOKS)):
        steps, shares = [p["steps"] for p in points], [p["accuracy"] for p in points]
        text = f"{len(points)} points of {policy or 'the grid'}"
        ax.scatter(steps, percents(shares), s=18, color=colour, alpha=0.4, label=text)
        best = [points[i] for i in front(steps, [-share for share in shares])]
        steps, shares = [p["steps"] for p in best], [p["accuracy"] for p in best]
        text = f"Pareto front of {policy or 'the grid'} (95 % interval)"
        style = {"fmt": f"{marker}-", "color": colour, "label": text}
        plots.points(ax, steps, shares, [p["accuracy_interval"] for p in best], **style)
        for p in best:
            number += 1
            ax.plot([], [], " ", label=f"{number}: {name(p, names)}")
            place = p["steps"], 100 * p["accuracy"]
            ax.annotate(str(number), place, xytext=(5, -11), textcoords="offset points", fontsize=9)
    for base in report["greedy"]:
        plots.greedy_line(ax, base)
    ax.set(xlabel=plots.STEPS, ylabel=plots.ACCURACY)
    ax.set_title(plots.title(report), fontsize=10)
    plots.legend_below(ax, 0.12, ncols=2)
    return fig


def commits(report: Mapping[str, Any]):
    """Draw each point's share of clean commits that differ from greedy's token, by distance.

    None where the commits were not looked at.
    """
    parts = [p for p in report["points"] if "commits" in p]
    if not parts:
        return None
    fig, [line] = plots.panels(1, len(parts), 4.8 * len(parts), 5)
    for ax, part in zip(line, parts, strict=True):
        rows = [r for r in part["commits"] if r["clean"]]
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
                style, colour = styles[r["kind"]]
                text = f"{r['kind']}, {100 * r['share']:.1f} %"
                ax.axhline(100 * r["share"], linestyle=style, color=colour, label=text)
        ax.set_title(name(part), fontsize=9)
        ax.set(xlabel="distance to the nearest anchor, positions")
        ax.set(ylabel="clean commits that differ from greedy's, %")
        ax.set_ylim(bottom=0)
        plots.whole_numbers(ax)
        plots.legend_below(ax, 0.16)
    fig.suptitle(plots.title(report), fontsize=10)
    return fig
