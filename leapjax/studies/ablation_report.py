"""Grids as reports, tables, plots and files."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.studies import ablation_plots, evaluation_report, plots
from leapjax.studies.commit_differences import differences
from leapjax.studies.runner import greedy
from leapjax.studies.setting_grids import Grid
from leapjax.studies.statistics import front
from leapjax.studies.tables import heading, markdown_table, with_interval

# Nothing is timed: rows of many settings run together.
_MEASURES = (
    *("n", "accuracy", "accuracy_interval", "difference", "difference_interval", "steps"),
    *("steps_share", "eos_steps", "tokens_per_step", "agreement", "agreement_interval"),
)
DEFINITIONS = {n: told for n, told in evaluation_report.DEFINITIONS.items() if n in _MEASURES} | {
    "difference": "accuracy minus greedy's on the same canvas, mean of the paired differences; "
    "95 % normal interval",
    "on_front": "no other point of the grid is at least as accurate in fewer steps, or more "
    "accurate in as many",
}


def grid_report(
    grid: Grid,
    made: Mapping[DecodeConfig, Sequence[Mapping[str, Any]]],
    ends: Collection[int] | None = None,
) -> dict[str, Any]:
    """The numbers of every point, from the answers under it and under greedy on its canvas.

    With `ends`, the ids that end an answer, also each point's commits, of answers with details.
    """

    def measure(config: DecodeConfig) -> dict[str, Any]:
        numbers = evaluation_report.summarise(made[config], made[greedy(config)])
        return {name: numbers[name] for name in _MEASURES}

    points: list[dict[str, Any]] = [
        {"values": dict(p.values)} | measure(p.config) for p in grid.points
    ]
    best = front([p["steps"] for p in points], [-p["accuracy"] for p in points])
    if ends is not None:
        for point, (_, config) in zip(points, grid.points, strict=True):
            point["commits"] = differences(made[config], made[greedy(config)], ends)
    baselines = dict.fromkeys(greedy(p.config) for p in grid.points)
    return {
        "axes": {axis.name: list(axis.values) for axis in grid.axes},
        "left_out": grid.left_out,
        "merged": grid.merged,
        "definitions": DEFINITIONS,
        "greedy": [
            {"gen_length": c.gen_length, "block_length": c.block_length} | measure(c)
            for c in baselines
        ],
        "points": [point | {"on_front": i in best} for i, point in enumerate(points)],
    }


def markdown(report: Mapping[str, Any]) -> str:
    """A grid's points as a Markdown table, and a table of each point's commits."""
    names = list(report["axes"])
    head = [*names, "accuracy % (95 %)", "− greedy, points (95 %)", "same text as greedy %"]
    cells = [[*head, "steps", "tokens/step", "front"]]
    for p in report["points"]:
        cells.append(
            [
                *(f"{p['values'].get(n, '')}" for n in names),
                with_interval(p["accuracy"], p["accuracy_interval"]),
                with_interval(p["difference"], p["difference_interval"], "+.1f"),
                f"{100 * p['agreement']:.1f}",
                f"{p['steps']:.2f}",
                f"{p['tokens_per_step']:.2f}",
                "yes" if p["on_front"] else "",
            ]
        )
    bases = "; ".join(
        f"greedy (canvas {g['gen_length']}, block {g['block_length']}): "
        f"{100 * g['accuracy']:.1f} % in {g['steps']:.2f} steps"
        for g in report["greedy"]
    )
    tables = [markdown_table(cells, len(names)), *map(_commits, report["points"])]
    return (
        f"{heading(report)}\n\n{bases}. {len(report['points'])} points, {report['left_out']} left "
        f"out (a lower threshold above the threshold), {report['merged']} merged.\n\n"
        + "\n".join(table for table in tables if table)
    )


def _commits(point: Mapping[str, Any]) -> str:
    cells = ["commits of " + ablation_plots.name(point), "distance", "all", "differ %"]
    cells = [[*cells, "clean", "differ % (95 %)", "mean confidence"]]
    rows = point.get("commits", ())
    clean = {(r["kind"], r["distance"]): r for r in rows if r["clean"]}
    for r in (r for r in rows if not r["clean"]):
        line = [r["kind"], "any" if r["distance"] is None else str(r["distance"])]
        line += [str(r["commits"]), f"{100 * r['share']:.1f}"]
        told = ["0", "", ""]
        if c := clean.get((r["kind"], r["distance"])):
            share = with_interval(c["share"], c["interval"])
            told = [str(c["commits"]), share, f"{c['confidence']:.3f}"]
        cells.append([*line, *told])
    return markdown_table(cells) if rows else ""


def files(report: Mapping[str, Any]) -> dict[str, Any]:
    """The files of a grid: name -> content, as `leapjax.studies.files.write_all` takes them."""
    points, drawn = report["points"], plots.available()
    flat = [
        p["values"] | {k: v for k, v in p.items() if k not in ("values", "commits")} for p in points
    ]
    return {
        "report.json": report,
        "points.csv": flat,
        "points.md": markdown(report),
        "pareto.png": ablation_plots.pareto(report) if drawn else None,
        "heatmap.png": ablation_plots.heat_map(report) if drawn else None,
        "commits.png": ablation_plots.commits(report) if drawn else None,
    }
