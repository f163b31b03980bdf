"""The report of `leapjax chain`: tables, files, and the two figures."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from leapjax.studies import plots
from leapjax.studies.chain_study import measure
from leapjax.studies.tables import markdown_table, with_interval

FILES = ("report.json", "points.csv", "neighbourhoods.csv", "report.md")
FIGURES = ("frontier.png", "neighbourhoods.png")
_MARKERS = "osD^vP*X<>ph"
# Temperature 0, above 0.
_MEASURES = ("nats less probable than one token a step", "expected nats lost by a pass's commits")


def _series(report: Mapping[str, Any]):
    """Chain -> policy -> its front as measured on fresh prompts, (steps, nats), by steps."""
    out: dict[str, dict[str, list]] = {}
    for (name, policy), points in itertools.groupby(
        report["points"], lambda p: (p["chain"], p["policy"])
    ):
        drawn = [(p["fresh"]["steps"], p["fresh"][measure(p)]) for p in points if p["fresh"]]
        if drawn:
            out.setdefault(name, {})[policy] = sorted(drawn)
    return out


def _measure(report: Mapping[str, Any], name: str) -> str:
    return _MEASURES[report["chains"][name]["temperature"] > 0]


def frontier_figure(report: Mapping[str, Any]):
    """Nats against steps on fresh prompts, the front of every policy."""
    series = _series(report)
    wide = min(3, len(series))
    high = -(-len(series) // wide)
    fig, axes = plots.panels(high, wide, 5.4 * wide, 4.6 * high + 1.2)
    from matplotlib import colormaps

    axes, cmap = list(itertools.chain(*axes)), colormaps["tab20"]
    policies = dict.fromkeys(p for found in series.values() for p in found)
    looks = {
        policy: {"color": cmap(n % 20), "marker": marker, "markersize": 4, "linewidth": 1}
        for n, (policy, marker) in enumerate(zip(policies, itertools.cycle(_MARKERS)))
    }
    for ax, (name, found) in zip(axes, series.items(), strict=False):
        for policy, line in found.items():
            ax.plot(*zip(*line, strict=True), **looks[policy])
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(report["chains"][name]["title"], fontsize=10)
        ax.set(xlabel=f"mean steps, canvas {report['canvas']}", ylabel=_measure(report, name))
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(bottom=min(ax.dataLim.y0, 0) - 0.1)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    for ax in axes[len(series) :]:
        ax.set_axis_off()
    handles = [axes[0].plot([], [], label=p, **look)[0] for p, look in looks.items()]
    fig.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=6, frameon=False)
    return fig


_PANELS = (
    ("greedy", "greedy: log p(near) − log p(elsewhere), nats", "above 0: the neighbourhood"),
    ("sampled", "sampled: nats lost near − elsewhere", "below 0: the neighbourhood"),
)


def neighbourhood_figure(report: Mapping[str, Any]):
    """Near minus elsewhere by radius, a line for each correlation length."""
    rows = report["neighbourhoods"]
    if not rows:
        return None
    levels = list(dict.fromkeys(r["relaxed_threshold"] for r in rows))
    lengths = list(dict.fromkeys(r["correlation_length"] for r in rows))
    fig, axes = plots.panels(len(levels), 2, 11, 4.2 * len(levels) + 0.4)
    from matplotlib import colormaps

    cmap = colormaps["viridis"]
    for line, level in zip(axes, levels, strict=True):
        for ax, (field, label, better) in zip(line, _PANELS, strict=True):
            for n, length in enumerate(lengths):
                own = [r for r in rows if r[field] is not None]
                own = [r for r in own if r["relaxed_threshold"] == level]
                own = [r for r in own if r["correlation_length"] == length]
                x, y = [r["radius"] for r in own], [r[field] for r in own]
                ends = [[v - r[f"{field}_interval"][0] for v, r in zip(y, own, strict=True)]] * 2
                style = {"label": f"correlation length {length:.1f}", "capsize": 3, "marker": "o"}
                style["color"] = cmap(n / max(len(lengths) - 1, 1) * 0.9)
                ax.errorbar(x, y, yerr=ends, markersize=4, linewidth=1.2, **style)
            ax.axhline(0, color="black", linewidth=1)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
            ax.set(xlabel="radius, positions", ylabel=label)
            ax.set_title(f"relaxed threshold {level:g} ({better} is better)", fontsize=9)
    axes[0][0].legend(fontsize=8)
    return fig


def markdown(report: Mapping[str, Any]) -> str:
    """Both tables: nats at equal mean steps, and near against elsewhere."""
    budgets = [report["canvas"] // n for n in (2, 4, 8)]
    out = []
    for name, found in _series(report).items():
        cells = [["policy", "settings", *(f"{b} steps" for b in budgets)]]
        for policy, points in found.items():
            # Two neighbouring settings, mixed: a decoder that one could run.
            steps, nats = zip(*points, strict=True)
            costs = [
                f"{np.interp(b, steps, nats):.2f}" if steps[0] <= b <= steps[-1] else "–"
                for b in budgets
            ]
            cells.append([policy, str(report["counts"][name][policy]), *costs])
        title = report["chains"][name]["title"]
        out.append(f"**{title}**: {_measure(report, name)}, canvas {report['canvas']}.\n\n")
        out.append(markdown_table(cells) + "\n")
    if report["neighbourhoods"]:
        fields = ("greedy", "error", "sampled")
        head = ["correlation length", "relaxed threshold", "radius", "commits", *fields]
        cells = [head]
        for r in report["neighbourhoods"]:
            told = [f"{r['correlation_length']:.1f}", f"{r['relaxed_threshold']:g}"]
            told += [str(r["radius"]), f"{r['commits']:.1f}"]
            told += [with_interval(r[f], r[f"{f}_interval"], "+.3f", 1) for f in fields]
            cells.append(told)
        out.append("**An anchor's neighbourhood against as many commits elsewhere** (near minus ")
        out.append("elsewhere, nats, 95 % intervals).\n\n" + markdown_table(cells))
    for policy, reason in report["left_out"].items():
        out.append(f"\nLeft out: {policy} ({reason}).\n")
    return "".join(out)


def files(report: Mapping[str, Any]) -> dict[str, Any]:
    """The files of a report; figures are None without matplotlib."""
    flat = []
    for p in report["points"]:
        told = {
            n: p[n] for n in ("chain", "policy", "temperature", "steps", "gap", "error", "lost")
        }
        told |= {
            f"{n}_interval": p[f"{n}_interval"] or (None, None) for n in ("gap", "error", "lost")
        }
        told["fresh_steps"] = p["fresh"] and p["fresh"]["steps"]
        told["fresh_nats"] = p["fresh"] and p["fresh"][measure(p)]
        flat.append(told | p["numbers"])
    drawn = plots.available()
    return {
        "report.json": report,
        "points.csv": flat,
        "neighbourhoods.csv": report["neighbourhoods"] or None,
        "report.md": markdown(report),
        "frontier.png": frontier_figure(report) if drawn else None,
        "neighbourhoods.png": neighbourhood_figure(report) if drawn else None,
    }
