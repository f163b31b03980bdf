"""Grids and studies as reports, tables and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leapjax.ablation import answers, commits, matching, plot, study_plot, summary
from leapjax.ablation.files import write_csv, write_json, write_text
from leapjax.ablation.grid import Grid
from leapjax.ablation.studies import Study
from leapjax.evaluation.plot import available

MATCHED = (
    "steps are matched by mixing the two neighbouring settings of the control, one slower, one "
    "faster, so that their mean steps are the setting's; 95 % normal interval of the difference, "
    "paired by problem, with the error of the mixture's weight (delta method)"
)


def of_grid(grid: Grid, made: answers.Answers) -> dict[str, Any]:
    """The numbers of every point.

    Args:
      grid: the settings.
      made: answers of each and of greedy on its canvas.
    """
    points = []
    for point in grid.points:
        base = made[answers.greedy(point.config)]
        values = dict(point.values)
        points.append({"values": values} | summary.measure(made[point.config], base))
    best = set(summary.front(points))
    for i, point in enumerate(points):
        point["on_front"] = i in best
    baselines = dict.fromkeys(answers.greedy(p.config) for p in grid.points)
    return {
        "axes": {axis.name: list(axis.values) for axis in grid.axes},
        "left_out": grid.left_out,
        "merged": grid.merged,
        "definitions": summary.DEFINITIONS,
        "greedy": [
            {"gen_length": c.gen_length, "block_length": c.block_length}
            | summary.measure(made[c], made[c])
            for c in baselines
        ],
        "points": points,
    }


def of_study(study: Study, made: answers.Answers, eos_id: int) -> dict[str, Any]:
    """Curves, comparisons at equal steps, and commits one by one.

    Args:
      study: the question.
      made: answers with details, of each setting and of greedy.
      eos_id: the model's.
    """
    base = made[answers.greedy(study.configs[0])]
    curves = [
        {
            "name": curve.name,
            "label": curve.label,
            "points": [
                {"values": _told(config)} | summary.measure(made[config], base)
                for config in curve.configs
            ],
        }
        for curve in study.curves.values()
    ]
    outcomes = {
        name: [_outcome(made[c]) for c in curve.configs] for name, curve in study.curves.items()
    }
    matched = []
    for name, control in study.pairs:
        for config, outcome in zip(study.curves[name].configs, outcomes[name], strict=True):
            matched.append(
                {"curve": name, "control": control, "setting": _words(_told(config))}
                | _matched(matching.match(outcome, outcomes[control]), outcome, study, control)
            )
    against = commits.with_eos(base, eos_id)
    return {
        "study": study.name,
        "title": study.title,
        "definitions": summary.DEFINITIONS | {"matched": MATCHED},
        "greedy": summary.measure(base, base),
        "curves": curves,
        "matched": matched,
        "commits": [
            {"label": label, "rows": commits.differences(made[config], against)}
            for label, config in study.kinds
        ],
    }


def _outcome(these: Sequence[Mapping[str, Any]]) -> matching.Outcome:
    right = np.array([a["correct"] for a in these], float)
    return matching.Outcome(right, np.array([a["steps"] for a in these], float))


def _told(config) -> dict[str, Any]:
    """What a study sets of a setting."""
    names = ("threshold", "relaxed_threshold", "radius", "radius_left", "radius_right", "decay")
    return {n: getattr(config, n) for n in names if getattr(config, n) is not None}


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{n.replace('_', ' ')} {v:g}" for n, v in values.items())


def _matched(found, outcome, study: Study, control: str) -> dict[str, Any]:
    if found is None:
        missing = ("control_accuracy", "difference", "interval", "slower", "faster", "weight")
        values = {"steps": float(outcome.steps.mean()), "accuracy": float(outcome.right.mean())}
        return values | dict.fromkeys(missing)
    configs = study.curves[control].configs
    return {
        "steps": found.steps,
        "accuracy": found.accuracy,
        "control_accuracy": found.control,
        "difference": found.difference,
        "interval": list(found.interval),
        "slower": _words(_told(configs[found.slower])),
        "faster": _words(_told(configs[found.faster])),
        "weight": found.weight,
    }


def heading(report: Mapping[str, Any]) -> str:
    """What was measured, in one line.

    Args:
      report: of a grid or a study.
    """
    model, s = report["model"], report["settings"]
    return (
        f"{s['task']}, split {s['split']}, seed {s['seed']}, n={report['n']}; canvas "
        f"{s['gen_length']}, block {s['block_length']}; model {model['name']}, "
        f"{(model['hash'] or 'unhashed')[:12]}, {model['dtype']}; {report['device']}, batch "
        f"{s['batch_size']}"
    )


def _range(interval: Sequence[float] | None, signed: bool = False) -> str:
    if interval is None:
        return ""
    form = "{:+.1f}" if signed else "{:.1f}"
    return " to ".join(form.format(100 * x + 0.0) for x in interval)


def _table(cells: Sequence[Sequence[str]], text: int = 1) -> str:
    rule = ["---" if i < text else "---:" for i in range(len(cells[0]))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (cells[0], rule, *cells[1:]))


def grid_markdown(report: Mapping[str, Any], front_only: bool = False) -> str:
    """A grid's points as a Markdown table.

    Args:
      report: from `of_grid`.
      front_only: leave out what is not on the Pareto front.
    """
    names = list(report["axes"])
    head = [*names, "accuracy % (95 %)", "− greedy, points (95 %)", "same text as greedy %"]
    cells = [[*head, "steps", "tokens/step", "front"]]
    for p in report["points"]:
        if front_only and not p["on_front"]:
            continue
        cells.append(
            [
                *(f"{p['values'].get(n, '')}" for n in names),
                f"{100 * p['accuracy']:.1f} ({_range(p['accuracy_interval'])})",
                f"{100 * p['difference']:+.1f} ({_range(p['difference_interval'], True)})",
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
        + _table(cells, len(names))
    )


def study_markdown(report: Mapping[str, Any]) -> str:
    """A study as Markdown tables.

    Args:
      report: from `of_study`.
    """
    greedy = report["greedy"]
    out = (
        f"{heading(report)}\n\nGreedy: {100 * greedy['accuracy']:.1f} % in {greedy['steps']:.2f} "
        "steps. Control: its mixture with the same mean steps.\n\n"
    )
    cells = [
        ["curve", "control", "setting", "steps", "accuracy %", "control %", "difference (95 %)"]
    ]
    for m in report["matched"]:
        line = [m["curve"], m["control"], m["setting"], f"{m['steps']:.2f}"]
        line.append(f"{100 * m['accuracy']:.1f}")
        if m["difference"] is None:
            line += ["", "the control has no such steps"]
        else:
            line.append(f"{100 * m['control_accuracy']:.1f}")
            line.append(f"{100 * m['difference'] + 0.0:+.1f} ({_range(m['interval'], True)})")
        cells.append(line)
    out += _table(cells, 3)
    for part in report["commits"]:
        cells = [["commits of " + part["label"], "distance", "all", "differ %"]]
        cells[0] += ["clean", "differ % (95 %)", "mean confidence"]
        clean = {(r["kind"], r["distance"]): r for r in part["rows"] if r["clean"]}
        for r in part["rows"]:
            if r["clean"]:
                continue
            line = [r["kind"], "any" if r["distance"] is None else str(r["distance"])]
            line += [str(r["commits"]), f"{100 * r['share']:.1f}"]
            c = clean.get((r["kind"], r["distance"]))
            if c is None:
                line += ["0", "", ""]
            else:
                share = f"{100 * c['share']:.1f} ({_range(c['interval'])})"
                line += [str(c["commits"]), share, f"{c['confidence']:.3f}"]
            cells.append(line)
        out += "\n" + _table(cells)
    return out


def save_grid(report: Mapping[str, Any], folder: Path) -> list[str]:
    """Write `report.json`, `points.csv`, `points.md`, `pareto.png`, `heatmap.png`.

    Args:
      report: from `of_grid`, with what was measured.
      folder: where.

    Returns:
      Names of the files written; plots are left out without matplotlib.
    """
    write_json(folder / "report.json", report)
    rows = [p["values"] | {k: v for k, v in p.items() if k != "values"} for p in report["points"]]
    write_csv(folder / "points.csv", rows)
    write_text(folder / "points.md", grid_markdown(report))
    names = ["report.json", "points.csv", "points.md"]
    if not available():
        return names
    plot.pareto(report, folder / "pareto.png")
    names.append("pareto.png")
    if plot.heat_map(report, folder / "heatmap.png"):
        names.append("heatmap.png")
    return names


def save_study(report: Mapping[str, Any], folder: Path) -> list[str]:
    """Write `NAME.json`, `NAME.csv` (points), `NAME-matched.csv`, `NAME.md`, plots.

    Args:
      report: from `of_study`, with what was measured.
      folder: where.

    Returns:
      Names of the files written.
    """
    name = report["study"]
    write_json(folder / f"{name}.json", report)
    points = [
        {"curve": c["name"]} | p["values"] | {k: v for k, v in p.items() if k != "values"}
        for c in report["curves"]
        for p in c["points"]
    ]
    write_csv(folder / f"{name}.csv", points)
    # A comparison that could not be made keeps its two columns, empty.
    matched = [m | {"interval": m["interval"] or (None, None)} for m in report["matched"]]
    write_csv(folder / f"{name}-matched.csv", matched)
    write_text(folder / f"{name}.md", study_markdown(report))
    names = [f"{name}{end}" for end in (".json", ".csv", "-matched.csv", ".md")]
    if not available():
        return names
    study_plot.curves(report, folder / f"{name}.png")
    names.append(f"{name}.png")
    if report["commits"]:
        study_plot.commits(report, folder / f"{name}-commits.png")
        names.append(f"{name}-commits.png")
    return names
