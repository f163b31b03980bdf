"""Grids and studies as reports, tables, plots and files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from leapjax.config import DecodeConfig
from leapjax.policies import PARAMETERS
from leapjax.studies import ablation_plots, evaluation_report, plots
from leapjax.studies.commit_differences import differences
from leapjax.studies.equal_steps import Outcome, match
from leapjax.studies.runner import greedy
from leapjax.studies.setting_grids import Grid
from leapjax.studies.step_curves import Study
from leapjax.studies.tables import heading, markdown_table, with_interval

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
MATCHED = (
    "steps are matched by mixing the two neighbouring settings of the control, one slower, one "
    "faster, so that their mean steps are the setting's; 95 % normal interval of the difference, "
    "paired by problem, with the error of the mixture's weight (delta method)"
)
Answers = Mapping[DecodeConfig, Sequence[Mapping[str, Any]]]


def measure(
    these: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The numbers of one setting.

    Args:
      these: its answers.
      base: greedy's, to the same problems in the same order.

    Returns:
      Numbers by the names in `DEFINITIONS`. Nothing is timed: rows of many settings run together.
    """
    numbers = evaluation_report.summarise(these, base)
    return {name: numbers[name] for name in _MEASURES}


def front(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the points that no other beats in both accuracy and steps, fewest steps first.

    Args:
      points: with `accuracy` and `steps`; of equal points the first stays.

    >>> front([{"steps": 2, "accuracy": 0.9}, {"steps": 3, "accuracy": 0.8}])
    [0]
    """
    order = sorted(
        range(len(points)), key=lambda i: (points[i]["steps"], -points[i]["accuracy"], i)
    )
    out, best = [], -1.0
    for i in order:
        if points[i]["accuracy"] > best:
            out.append(i)
            best = points[i]["accuracy"]
    return out


def grid_report(grid: Grid, made: Answers) -> dict[str, Any]:
    """The numbers of every point.

    Args:
      grid: the settings.
      made: answers of each, and of greedy on its canvas.
    """
    points = [
        {"values": dict(p.values)} | measure(made[p.config], made[greedy(p.config)])
        for p in grid.points
    ]
    best = set(front(points))
    baselines = dict.fromkeys(greedy(p.config) for p in grid.points)
    return {
        "axes": {axis.name: list(axis.values) for axis in grid.axes},
        "left_out": grid.left_out,
        "merged": grid.merged,
        "definitions": DEFINITIONS,
        "greedy": [
            {"gen_length": c.gen_length, "block_length": c.block_length} | measure(made[c], made[c])
            for c in baselines
        ],
        "points": [point | {"on_front": i in best} for i, point in enumerate(points)],
    }


def study_report(study: Study, made: Answers, ends: Collection[int]) -> dict[str, Any]:
    """Curves, comparisons at equal steps, and commits one by one.

    Args:
      study: the question.
      made: answers with details, of each setting and of greedy.
      ends: the ids that end an answer (`DecodeConfig.end_ids`).
    """
    base = made[greedy(study.configs[0])]
    outcomes = {name: [_outcome(made[c]) for c in x.configs] for name, x in study.curves.items()}
    curves = [
        {
            "name": name,
            "label": curve.label,
            "points": [{"values": _told(c)} | measure(made[c], base) for c in curve.configs],
        }
        for name, curve in study.curves.items()
    ]
    matched = []
    for name, control in study.pairs:
        words = [_words(c) for c in study.curves[control].configs]
        for config, outcome in zip(study.curves[name].configs, outcomes[name], strict=True):
            found = match(outcome, outcomes[control])
            if found is None:
                missing = ("control_accuracy", "difference", "interval", "slower", "faster")
                found = {"steps": outcome.steps.mean(), "accuracy": outcome.right.mean()}
                found = {n: float(v) for n, v in found.items()}
                found |= dict.fromkeys((*missing, "weight"))
            else:
                found |= {side: words[found[side]] for side in ("slower", "faster")}
            matched.append({"curve": name, "control": control, "setting": _words(config)} | found)
    return {
        "study": study.name,
        "title": study.title,
        "definitions": DEFINITIONS | {"matched": MATCHED},
        "greedy": measure(base, base),
        "curves": curves,
        "matched": matched,
        "commits": [
            {"label": label, "rows": differences(made[config], base, ends)}
            for label, config in study.kinds
        ],
    }


def _outcome(these: Sequence[Mapping[str, Any]]) -> Outcome:
    return Outcome(*(np.array([a[name] for a in these], float) for name in ("correct", "steps")))


def _told(config: DecodeConfig) -> dict[str, Any]:
    """What a study sets of a setting."""
    return {n: v for n, v in config.changed().items() if n in PARAMETERS}


def _words(config: DecodeConfig) -> str:
    return ", ".join(f"{n.replace('_', ' ')} {v:g}" for n, v in _told(config).items())


def grid_markdown(report: Mapping[str, Any]) -> str:
    """A grid's points as a Markdown table."""
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
    return (
        f"{heading(report)}\n\n{bases}. {len(report['points'])} points, {report['left_out']} left "
        f"out (a lower threshold above the threshold), {report['merged']} merged.\n\n"
        + markdown_table(cells, len(names))
    )


def study_markdown(report: Mapping[str, Any]) -> str:
    """A study as Markdown tables."""
    base = report["greedy"]
    out = (
        f"{heading(report)}\n\nGreedy: {100 * base['accuracy']:.1f} % in {base['steps']:.2f} "
        "steps. Control: its mixture with the same mean steps.\n\n"
    )
    cells = ["curve", "control", "setting", "steps", "accuracy %", "control %"]
    cells = [[*cells, "difference (95 %)"]]
    for m in report["matched"]:
        line = [m["curve"], m["control"], m["setting"], f"{m['steps']:.2f}"]
        if m["difference"] is None:
            told = ["", "the control has no such steps"]
        else:
            told = [f"{100 * m['control_accuracy']:.1f}"]
            told.append(with_interval(m["difference"], m["interval"], "+.1f"))
        cells.append([*line, f"{100 * m['accuracy']:.1f}", *told])
    out += markdown_table(cells, 3)
    for part in report["commits"]:
        cells = ["commits of " + part["label"], "distance", "all", "differ %"]
        cells = [[*cells, "clean", "differ % (95 %)", "mean confidence"]]
        clean = {(r["kind"], r["distance"]): r for r in part["rows"] if r["clean"]}
        for r in part["rows"]:
            if r["clean"]:
                continue
            line = [r["kind"], "any" if r["distance"] is None else str(r["distance"])]
            line += [str(r["commits"]), f"{100 * r['share']:.1f}"]
            if c := clean.get((r["kind"], r["distance"])):
                share = with_interval(c["share"], c["interval"])
                line += [str(c["commits"]), share, f"{c['confidence']:.3f}"]
            else:
                line += ["0", "", ""]
            cells.append(line)
        out += "\n" + markdown_table(cells)
    return out


def grid_files(report: Mapping[str, Any]) -> dict[str, Any]:
    """The files of a grid: name -> content, as `leapjax.studies.files.write_all` takes them.

    Args:
      report: from `grid_report`, with what was measured.

    Returns:
      `report.json`, `points.csv`, `points.md`, and with matplotlib `pareto.png`, `heatmap.png`.
    """
    points = report["points"]
    out = {"report.json": report, "points.csv": [_flat(p) for p in points]}
    out["points.md"] = grid_markdown(report)
    if plots.available():
        out["pareto.png"] = ablation_plots.pareto(report, [points[i] for i in front(points)])
        out["heatmap.png"] = ablation_plots.heat_map(report)
    return out


def study_files(report: Mapping[str, Any]) -> dict[str, Any]:
    """The files of a study, as `grid_files`.

    Args:
      report: from `study_report`, with what was measured.

    Returns:
      `NAME.json`, `NAME.csv` (points), `NAME-matched.csv`, `NAME.md`, and with matplotlib
      `NAME.png`, `NAME-commits.png`.
    """
    # A comparison that could not be made keeps its two columns, empty.
    matched = [m | {"interval": m["interval"] or (None, None)} for m in report["matched"]]
    out = {
        ".json": report,
        ".csv": [{"curve": c["name"]} | _flat(p) for c in report["curves"] for p in c["points"]],
        "-matched.csv": matched,
        ".md": study_markdown(report),
    }
    if plots.available():
        out[".png"] = ablation_plots.curves(report)
        out["-commits.png"] = ablation_plots.commits(report) if report["commits"] else None
    return {report["study"] + end: content for end, content in out.items()}


def _flat(point: Mapping[str, Any]) -> dict[str, Any]:
    return point["values"] | {k: v for k, v in point.items() if k != "values"}
