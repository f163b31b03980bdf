"""Plots of a grid: heat maps of accuracy and steps, and the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.ablation.files import write
from leapjax.ablation.summary import front
from leapjax.errors import UserError

MOST_PANELS = 8  # beside each other, still readable


def figure(width: float, height: float):
    """An empty figure that needs no display.

    Args:
      width: inches.
      height: inches.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise UserError("plots need matplotlib; pip install leapjax[plots]") from e
    out = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(out)
    return out


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

    Args:
      report: of a grid.
      path: the PNG.

    Returns:
      Whether there was something to draw: two axes with several values, few enough panels.
    """
    axes = report["axes"]
    names = several(axes)
    if len(names) < 2:
        return False
    y, x, others = names[0], names[1], names[2:]
    panels = list(itertools.product(*(axes[name] for name in others)))
    if len(panels) > MOST_PANELS:
        return False
    columns, lines = axes[x], axes[y]
    wide = max(2.6, 0.52 * len(columns) + 0.6)
    fig = figure(wide * len(panels) + 1.6, 2 * max(2.4, 0.42 * len(lines) + 1.1))
    grid = fig.subplots(2, len(panels), squeeze=False)
    for line, (field, factor, form, colours, label) in enumerate(
        (
            ("accuracy", 100, "{:.1f}", "viridis", "accuracy, %"),
            ("steps", 1, "{:.1f}", "cividis", "mean steps"),
        )
    ):
        shown = [factor * p[field] for p in report["points"]]
        low, high = min(shown), max(shown)
        if low == high:  # a scale needs a width, and the panels share it
            low, high = low - 0.5, high + 0.5
        image = None
        for column, panel in enumerate(panels):
            ax = grid[line][column]
            cells = _cells(report["points"], (y, lines), (x, columns), others, panel, field)
            values = [[float("nan") if v is None else factor * v for v in r] for r in cells]
            image = ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
            ax.set_facecolor("#dddddd")  # left out
            for i, row in enumerate(values):
                for j, value in enumerate(row):
                    if value == value:
                        dark = value < (low + high) / 2
                        ax.text(
                            j,
                            i,
                            form.format(value),
                            ha="center",
                            va="center",
                            fontsize=7,
                            color="white" if dark else "black",
                        )
            ax.set_xticks(range(len(columns)), [_short(v) for v in columns], fontsize=8)
            ax.set_yticks(range(len(lines)), [_short(v) for v in lines], fontsize=8)
            if column:
                ax.set_yticklabels([])
            else:
                ax.set_ylabel(y)
            if line:
                ax.set_xlabel(x)
            if others and not line:
                pairs = zip(others, panel, strict=True)
                ax.set_title(", ".join(f"{n} {_short(v)}" for n, v in pairs), fontsize=9)
        if image is not None:
            fig.colorbar(image, ax=list(grid[line]), label=label)
    fig.suptitle(title(report), fontsize=10)
    save(fig, path)
    return True


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
    names = several(report["axes"])
    told = []
    for number, p in enumerate(best, 1):
        values = ", ".join(f"{n} {_short(v)}" for n, v in p["values"].items() if n in names)
        told.append(f"{number}: {values}")
        place = p["steps"], 100 * p["accuracy"]
        ax.annotate(str(number), place, xytext=(5, -11), textcoords="offset points", fontsize=9)
    for base in report["greedy"]:
        share = 100 * base["accuracy"]
        ax.axhline(share, color="black", linewidth=1, linestyle=":")
        text = f"greedy {share:.1f} %, {base['steps']:.1f} steps"
        ax.plot([], [], ":", color="black", label=text)
    ax.set_xlabel("mean steps over the whole canvas")
    ax.set_ylabel("accuracy, %")
    ax.set_title(title(report), fontsize=10)
    ax.grid(alpha=0.3)
    if told:
        ax.plot([], [], " ", label="\n".join(told))
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(fig, path)


def _bars(points: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Distances from the accuracies to their intervals' ends, in points of a percent."""
    low = [100 * (p["accuracy"] - p["accuracy_interval"][0]) for p in points]
    high = [100 * (p["accuracy_interval"][1] - p["accuracy"]) for p in points]
    return [[max(v, 0) for v in low], [max(v, 0) for v in high]]
