"""Plots of a grid: heat maps of accuracy and steps, and the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.ablation.files import write
from leapjax.ablation.summary import front
from leapjax.evaluation.plot import figure

MOST_PANELS = 8  # beside each other, still readable


def save(fig, path: Path) -> None:
    """Write a figure as PNG.

    Args:
      fig: from `figure`.
      path: the file.
    """
    write(path, lambda part: fig.savefig(part, format="png"))


def several(axes: Mapping[str, Sequence[Any]]) -> list[str]:
    """Names of the axes with more than one value.

    Args:
      axes: name -> values.
    """
    return [name for name, values in axes.items() if len(values) > 1]


def heat_map(report: Mapping[str, Any], path: Path) -> bool:
    """Draw accuracy above steps over the first two axes, a panel for each value of the others.

    A quantity that is the same at every point has no panels; the title tells its value. The
    colours of accuracy span the points' 95 % intervals, so that noise looks like noise.

    Args:
      report: of a grid.
      path: the PNG.

    Returns:
      Whether there was something to draw: two axes with several values, few enough panels.
    """
    axes, points = report["axes"], report["points"]
    names = several(axes)
    panels = list(itertools.product(*(axes[name] for name in names[2:])))
    if len(names) < 2 or len(panels) > MOST_PANELS:
        return False
    head, shown = [title(report)], []
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
        return False
    wide, high = 0.52 * len(axes[names[1]]) + 0.6, 0.42 * len(axes[names[0]]) + 1.1
    fig = figure(max(2.6, wide) * len(panels) + 1.6, len(shown) * max(2.4, high) + 0.3)
    grid = fig.subplots(len(shown), len(panels), squeeze=False)
    for cells, (field, factor, scale, label) in zip(grid, shown, strict=True):
        for ax, panel in zip(cells, panels, strict=True):
            _heat_panel(ax, report, panel, field, factor, scale)
        cells[0].set_ylabel(names[0])
        for ax in cells[1:]:
            ax.set_yticklabels([])
        fig.colorbar(cells[0].images[0], ax=list(cells), label=label)
    for ax, panel in zip(grid[0], panels, strict=True):
        pairs = zip(names[2:], panel, strict=True)
        ax.set_title(", ".join(f"{n} {_short(v)}" for n, v in pairs), fontsize=9)
    for ax in grid[-1]:
        ax.set_xlabel(names[1])
    fig.suptitle("; ".join(head), fontsize=10)
    save(fig, path)
    return True


def _heat_panel(ax, report, panel, field, factor, scale) -> None:
    """One panel, with its numbers in the cells."""
    y, x, *others = several(report["axes"])
    lines, columns = report["axes"][y], report["axes"][x]
    cells = _cells(report["points"], (y, lines), (x, columns), others, panel, field)
    values = [[float("nan") if v is None else factor * v for v in r] for r in cells]
    ax.imshow(values, aspect="auto", **scale)
    ax.set_facecolor("#dddddd")  # left out
    for (i, row), (j, _) in itertools.product(enumerate(values), enumerate(columns)):
        if (value := row[j]) == value:
            colour = "white" if value < (scale["vmin"] + scale["vmax"]) / 2 else "black"
            style = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
            ax.text(j, i, f"{value:.1f}", **style)
    ax.set_xticks(range(len(columns)), [_short(v) for v in columns], fontsize=8)
    ax.set_yticks(range(len(lines)), [_short(v) for v in lines], fontsize=8)


def _cells(points, down, across, others, panel, field) -> list[list[float | None]]:
    """Rows of a panel; None where a point was left out."""
    (y, lines), (x, columns) = down, across
    found = {}
    for point in points:
        values = point["values"]
        if all(values.get(n) == v for n, v in zip(others, panel, strict=True)):
            found[values.get(y), values.get(x)] = point[field]
    return [[found.get((a, b)) for b in columns] for a in lines]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def title(report: Mapping[str, Any]) -> str:
    """What was measured, for the head of a plot.

    Args:
      report: of a grid or a study.
    """
    s, model = report["settings"], report["model"]
    return (
        f"{s['task']}, {s['split']}, n = {report['n']}, seed {s['seed']}; "
        f"model {model['name']} {(model['hash'] or '')[:8]}"
    )


def greedy_line(ax, greedy: Mapping[str, Any]) -> None:
    """Draw greedy's accuracy with its interval, so that an axis never spans noise alone.

    Args:
      ax: matplotlib's axes; accuracy in percent on y.
      greedy: its numbers.
    """
    share, (low, high) = 100 * greedy["accuracy"], (100 * x for x in greedy["accuracy_interval"])
    text = f"greedy {share:.1f} % (95 % interval), {greedy['steps']:.1f} steps"
    ax.axhline(share, color="black", linewidth=1, linestyle=":", label=text)
    ax.axhspan(low, high, color="black", alpha=0.08, linewidth=0, zorder=0)


def pareto(report: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against mean steps, every point, greedy, and the front with its settings.

    Args:
      report: of a grid.
      path: the PNG.
    """
    fig = figure(9, 5.4)
    ax = fig.add_subplot()
    points = report["points"]
    steps, shares = [p["steps"] for p in points], [100 * p["accuracy"] for p in points]
    ax.scatter(steps, shares, s=18, color="#56b4e9", label=f"{len(points)} points of the grid")
    best = [points[i] for i in front(points)]
    ax.errorbar(
        [p["steps"] for p in best],
        [100 * p["accuracy"] for p in best],
        yerr=_bars(best),
        fmt="o-",
        color="#d55e00",
        capsize=3,
        markersize=6,
        label="Pareto front (95 % interval)",
    )
    for base in report["greedy"]:
        greedy_line(ax, base)
    names = several(report["axes"])
    for number, p in enumerate(best, 1):
        values = ", ".join(f"{n} {_short(v)}" for n, v in p["values"].items() if n in names)
        ax.plot([], [], " ", label=f"{number}: {values}")
        place = p["steps"], 100 * p["accuracy"]
        ax.annotate(str(number), place, xytext=(5, -11), textcoords="offset points", fontsize=9)
    ax.set_xlabel("mean steps over the whole canvas")
    ax.set_ylabel("accuracy, %")
    ax.set_title(title(report), fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    save(fig, path)


def _bars(points: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Distances from the accuracies to their intervals' ends, in points of a percent."""
    low = [100 * (p["accuracy"] - p["accuracy_interval"][0]) for p in points]
    high = [100 * (p["accuracy_interval"][1] - p["accuracy"]) for p in points]
    return [[max(v, 0) for v in low], [max(v, 0) for v in high]]
