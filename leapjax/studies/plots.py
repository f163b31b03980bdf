"""What the studies' plots have in common: figures, error bars, legends, greedy's line."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.errors import UserError

STEPS, ACCURACY = "mean steps over the whole canvas", "accuracy, %"


def available() -> bool:
    """Whether matplotlib is installed; a study without it leaves its plots out."""
    return importlib.util.find_spec("matplotlib") is not None


def figure(width: float, height: float, dpi: int = 130):
    """An empty matplotlib figure that needs no display; width and height are in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise UserError("plots need matplotlib; pip install 'leapjax[plots]'") from e
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def panels(lines: int, columns: int, width: float, height: float, dpi: int = 130, **how):
    """A figure and its axes, a list for each line, all with a grid; `how` goes to `subplots`."""
    fig = figure(width, height, dpi)
    axes = fig.subplots(lines, columns, squeeze=False, **how)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    return fig, axes.tolist()


def title(report: Mapping[str, Any]) -> str:
    """What was measured, for the head of an ablation's plot."""
    s, model = report["settings"], report["model"]
    return (
        f"{s['task']}, {s['split']}, n = {report['n']}, seed {s['seed']}; "
        f"model {model['name']} {(model['hash'] or '')[:8]}"
    )


def bars(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> list[list[float]]:
    """Distances of shares to the ends of their intervals, in per cent, as `errorbar` takes them."""
    pairs = list(zip(values, intervals, strict=True))
    # Rounding may put an end of the interval on the wrong side of its value.
    return [
        [max(100 * (v - low), 0) for v, (low, _) in pairs],
        [max(100 * (high - v), 0) for v, (_, high) in pairs],
    ]


def percents(values: Sequence[float | None]) -> list[float]:
    """Shares in per cent; None becomes NaN, which is not drawn."""
    return [float("nan") if v is None else 100 * v for v in values]


def points(ax, x: Sequence[float], values: Sequence[float], intervals, **style) -> None:
    """Draw shares, in per cent, with their intervals; `style` goes to `errorbar`."""
    style = {"capsize": 3} | style
    ax.errorbar(x, percents(values), yerr=bars(values, intervals), **style)


def greedy_line(ax, greedy: Mapping[str, Any]) -> None:
    """Draw greedy's accuracy with its interval, so that an axis never spans noise alone."""
    share, (low, high) = 100 * greedy["accuracy"], (100 * x for x in greedy["accuracy_interval"])
    text = f"greedy {share:.1f} % (95 % interval), {greedy['steps']:.1f} steps"
    ax.axhline(share, color="black", linewidth=1, linestyle=":", label=text)
    ax.axhspan(low, high, color="black", alpha=0.08, linewidth=0, zorder=0)


def legend_below(ax, offset: float, **how) -> None:
    """A legend below the axes: inside, it would cover points whatever the numbers are.

    `offset` is its upper end, as a share of the axes' height; `how` goes to `legend`.
    """
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -offset), frameon=False, **how)


def whole_numbers(ax) -> None:
    """Ticks of the x axis at whole numbers only."""
    ax.xaxis.get_major_locator().set_params(integer=True)
