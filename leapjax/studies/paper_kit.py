"""Every published row that a checkpoint, its data and this machine allow, in one report.

rows ─▶ of this model? data there? ─▶ reasons ─▶ report.json, report.md
                     └─▶ run, one after the other ─┘
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.studies import paper_reproduction as reproduction
from leapjax.studies.paper_rows import UNKNOWN, PaperRow, by_setting, cells_of
from leapjax.studies.tables import markdown_table, with_interval
from leapjax.tasks import ifeval

PENDING = "not run yet"
# Layers and width of published models, by the beginning of their names.
_SHAPES = {"LLaDA-8B": (32, 4096), "LLaDA-1.5": (32, 4096), "Dream-v0": (28, 3584)}


def published_model(path: str, config: ModelConfig, models: Collection[str]) -> str:
    """Which published model a checkpoint is.

    Args:
      path: hub id, or a folder: its own name, or that of the hub's cache, is the model's.
      config: its shape.
      models: hub ids to choose from.

    Raises:
      UserError: its name is none of theirs, or its shape is another model's.
    """
    home = Path(path).resolve()
    names = {plain(name) for name in (path, Path(path).absolute().name, home.name)}
    if home.parent.name == "snapshots":  # the hub's cache: models--ORG--NAME/snapshots/COMMIT
        names.add(plain(home.parent.parent.name.rpartition("--")[2]))
    shape = config.n_layers, config.d_model
    fitting = [m for m in models if _shape(m) in (None, shape)]
    for model in models:
        if plain(model) in names:
            if model not in fitting:
                raise UserError(
                    f"{path}: is named like {model} and has {shape[0]} layers of width {shape[1]}, "
                    "which that model has not; say which one it is by --published-as"
                )
            return model
    raise UserError(
        f"{path}: its name tells none of the published models; say which one it is by "
        f"--published-as, of {', '.join(sorted(fitting or models))}"
    )


def plain(name: str) -> str:
    """A model's name without its organisation, case and marks.

    >>> plain("GSAI-ML/LLaDA-8B-Instruct")
    'llada8binstruct'
    """
    return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower())


def _shape(model: str) -> tuple[int, int] | None:
    name = model.rpartition("/")[2]
    return next((shape for start, shape in _SHAPES.items() if name.startswith(start)), None)


def files_of(row: PaperRow, folder: Path) -> tuple[Path, Path | None]:
    """A row's data and shots in a folder: `TASK.jsonl`, and `TASK-shots.jsonl` if it exists."""
    shots = folder / f"{row.task}-shots.jsonl"
    return folder / f"{row.task}.jsonl", shots if row.shots and shots.is_file() else None


def obstacle(row: PaperRow, model: str, config: ModelConfig, folder: Path) -> str | None:
    """Why a row can't be run, or None.

    Args:
      row: which.
      model: the published model that the checkpoint is.
      config: its shape.
      folder: of the data.
    """
    if row.model != model:
        return f"another model: {row.model}" if row.model != UNKNOWN else "its model is unknown"
    data, shots = files_of(row, folder)
    if not data.is_file():
        return f"{data.name} missing"
    if row.benchmark.random_shots and row.shots and shots is None:
        return f"{data.stem}-shots.jsonl missing"
    try:
        reproduction.check(row)
        row.decode.for_model(config)
        reproduction.shots_of(row, shots and str(shots))
        if row.task == "ifeval":
            ifeval.checker()
    except UserError as e:
        return str(e)
    return None


def report(
    rows: Mapping[str, PaperRow],
    made: Mapping[str, Mapping[str, Any]],
    reasons: Mapping[str, str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Published, rerun by others and ours, row by row, and why the rest was not run; JSON-ready.

    Args:
      rows: all there are.
      made: name -> the row's report, of those that were run.
      reasons: name -> why not, of the others.
      facts: model, device, versions.
    """
    same = by_setting(rows.values())
    out = []
    for name, numbers in made.items():
        names = ("task", "setting", "published", "rerun_by_others")
        told = dict(zip(names, cells_of(rows[name], same[rows[name].setting]), strict=True))
        out.append({"row": name, **told, **numbers})
    return {**facts, "rows": out, "not_run": dict(reasons)}


def not_run(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason, with its rows."""
    grouped: dict[str, list[str]] = {}
    for name, why in reasons.items():
        grouped.setdefault(why, []).append(name)
    return [f"not run: {why} ({', '.join(names)})" for why, names in grouped.items()]


def markdown(report: Mapping[str, Any]) -> str:
    """The report to read."""
    model = report["model"]
    head = ["row", "task", "setting", "published", "rerun by others", "ours, % (95 %)", "n"]
    cells = [[*head, "steps", "tokens/s", "seconds"]]
    for r in report["rows"]:
        shares: Sequence[tuple[str, Any]] = [*(r["measured"] or {}).items()]
        ours = [f"{with_interval(m['value'], m['interval'], '.2f', 1)} {n}" for n, m in shares]
        told = [r[key] for key in ("row", "task", "setting", "published", "rerun_by_others")]
        numbers = [f"{r[key]:.1f}" for key in ("steps", "tokens_per_s", "seconds")]
        cells.append([*told, "; ".join(ours) or "not scored", str(r["n"]), *numbers])
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    weights = f", {model['quantization']} weights" if model["quantization"] else ""
    limit = f"; the first {report['limit']} problems of each" if report["limit"] else ""
    return "\n".join(
        [
            "# Published rows, run with leapjax\n",
            f"{report['published_as']}: {model['hash'] or 'unhashed'}, {model['dtype']}{weights}; "
            f"{report['device']}, batch {report['batch_size']}{limit}. {versions}.\n",
            "Tokens/s: those before the first end of an answer, by wall time without compiling. "
            "Papers decode one row at a time.\n",
            markdown_table(cells, 6),
            *(f"- {line}" for line in not_run(report["not_run"])),
            "",
        ]
    )
