"""The figures of an analysis: delayed decoding, consistency by confidence and by distance."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leapjax.studies import plots
from leapjax.studies.observation_summary import BANDS
from leapjax.studies.plots import percents

MOST_POLICIES = 4  # side by side, still readable
LEAST_PAIRS = 30  # below which a point is not drawn
_BAND_COLOURS = ("#000000", "#882255", "#cc6677", "#ddaa33", "#44aa99", "#0072b2")
_DISTANCE_STYLES = {
    "1 to 2": ("#003f6b", "o"),
    "3 to 4": ("#0072b2", "s"),
    "5 to 8": ("#56b4e9", "^"),
    "9 to 16": ("#e69f00", "v"),
    "17 and more": ("#d55e00", "D"),
    "no anchor": ("#777777", "x"),
}


def _panels(
    report: Mapping[str, Any], height: float, lines: int = 1
) -> tuple[Any, Iterator[tuple[Mapping[str, Any], tuple[Any, ...]]]]:
    """A figure with a column of axes a policy; the first axes of each has a title."""
    runs = report["runs"]
    fig, axes = plots.panels(lines, len(runs), max(5.2 * len(runs), 6.5), height, dpi=120)
    for ax, (name, run) in zip(axes[0], runs.items(), strict=True):
        title = f"{name}: {run['prompts']} prompts, {run['steps']:.1f} steps on average"
        ax.set_title(title, fontsize=10)
    return fig, zip(runs.values(), zip(*axes, strict=True), strict=True)


def delays(report: Mapping[str, Any]):
    """When proposals become final against when they are committed, and how long they wait."""
    fig, panels = _panels(report, 7.2, 2)
    for run, (top, bottom) in panels:
        x = percents(run["curve"]["passes"])
        for key, label, colour in (
            ("stable", "proposal final and unchanged from here on", "#0072b2"),
            ("committed", "committed", "#d55e00"),
        ):
            points = run["curve"][key]
            top.plot(x, percents([p["value"] for p in points]), color=colour, label=label)
            if all(p["interval"] for p in points):
                low, high = (percents([p["interval"][k] for p in points]) for k in (0, 1))
                top.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        top.set(xlabel="passes of the decode, %", ylabel="answer positions, %")
        top.set(xlim=(0, 100), ylim=(0, 101))
        top.legend(fontsize=8, loc="lower right")
        counts = run["delay"]["answer"]["histogram"]
        shares = percents([v / max(sum(counts), 1) for v in counts])
        bottom.bar(range(len(counts)), shares, color="#0072b2", width=0.9)
        bottom.set(xlabel="passes between final proposal and commit, block active")
        bottom.set(ylabel="answer positions, %")
    return fig


def by_confidence(report: Mapping[str, Any]):
    """Consistency against confidence, a line for each distance from the nearest anchor."""
    fig, panels = _panels(report, 5.2)
    for run, (ax,) in panels:
        table = run["determinism"]["answer"]
        bands = [band for band in BANDS if band != "all"]
        for n, (distance, (colour, marker)) in enumerate(_DISTANCE_STYLES.items()):
            cells = [(i + (n - 2.5) * 0.09, table[band][distance]) for i, band in enumerate(bands)]
            _line(ax, cells, colour, marker, distance)
        ax.set_xticks(range(len(bands)), bands, fontsize=8)
        ax.set_xlim(-0.5, len(bands) - 0.5)
        _finish(ax, "confidence of the undecided position", "distance to the nearest anchor")
    return fig


def by_distance(report: Mapping[str, Any]):
    """Consistency against distance, a line for each band of confidence."""
    fig, panels = _panels(report, 5.2)
    for run, (ax,) in panels:
        table = run["distance"]["answer"].items()
        for n, ((band, points), colour) in enumerate(zip(table, _BAND_COLOURS, strict=True)):
            label = "all confidences" if band == "all" else band
            # Beside each other, so that no band's interval hides another's.
            cells = [(x + (n - 2) * 0.1, point) for x, point in enumerate(points, 1)]
            _line(ax, cells, colour, "o", label, 2 if band == "all" else 1)
        ax.set_xlim(left=0)
        plots.whole_numbers(ax)
        _finish(ax, "distance to the nearest anchor, positions", "confidence")
    return fig


def _line(ax, cells: Sequence[tuple[float, Any]], colour, marker, label, width: float = 1) -> None:
    """A line with intervals through the points that rest on enough pairs."""
    kept = [(x, p) for x, p in cells if p["n"] >= LEAST_PAIRS]
    if not kept:
        return
    values = [p["value"] for _, p in kept]
    ends = [p["interval"] or [p["value"]] * 2 for _, p in kept]
    style = {"fmt": f"{marker}-", "color": colour, "label": label, "markersize": 4.5}
    style |= {"linewidth": width, "elinewidth": 0.8, "capsize": 2}
    plots.points(ax, [x for x, _ in kept], values, ends, **style)


def _finish(ax, xlabel: str, legend: str) -> None:
    """Labels and grid; a legend, or that there are too few pairs for any line."""
    ax.set(xlabel=xlabel, ylabel="proposal is the final token, % (95 %)", ylim=(0, 102))
    if ax.get_legend_handles_labels()[1]:
        plots.legend_below(ax, 0.14, title=legend, title_fontsize=8, ncols=3)
    else:
        text = f"fewer than {LEAST_PAIRS} pairs everywhere"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", fontsize=9)
