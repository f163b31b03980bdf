"""The published rows: what a paper ran, what it reports, and where that is written.

A file of `configs/paper/` holds what its rows share, and under `rows` what differs from row to
row. `unknown` stands for what no source tells; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapjax.config import OPTIONS, DecodeConfig, check_keys
from leapjax.errors import UserError
from leapjax.studies.tables import text_table
from leapjax.tasks import benchmark as benchmarks

UNKNOWN = "unknown"
TEMPLATES = ("user_turn", "raw", UNKNOWN)
TASKS = ("gsm8k", "ifeval", "humaneval", "mbpp", "minerva_math")


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One published number and how it was made.

    Attributes:
      name: as `--reproduce` takes it.
      paper: title and number.
      model: hub id.
      task: of the harness.
      shots: solved problems ahead of the question.
      template: `user_turn` (the whole context in one user's turn), `raw`, or `unknown`.
      decode: options.
      metric: the measure that the paper reports, or `unknown`.
      expected: per cent, or `unknown`.
      measured: per cent, by us; None where nobody has run the row.
      sources: where the setting and the number stand.
      notes: what is uncertain or differs.
    """

    name: str
    paper: str
    model: str
    task: str
    shots: int
    template: str
    decode: DecodeConfig
    metric: str
    expected: float | str
    measured: float | None
    sources: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def benchmark(self) -> benchmarks.Benchmark:
        """Prompt and scorer."""
        return get_benchmark(self.task)


_KEYS = tuple(f.name for f in dataclasses.fields(PaperRow) if f.name != "name")


def get_benchmark(name: str) -> benchmarks.Benchmark:
    """The benchmark of a name in `TASKS`."""
    import importlib

    module = "competition_math" if name == "minerva_math" else name
    return importlib.import_module(f"leapjax.tasks.{module}").BENCHMARK


def load(folder: Path | None = None) -> dict[str, PaperRow]:
    """Every row of a folder's YAML files, by name.

    Args:
      folder: None is `configs/paper` of the repository that this package lies in.

    Raises:
      UserError: no files, or one that is not as it should be.
    """
    from leapjax.options import load_yaml

    folder = folder or Path(__file__).parents[2] / "configs" / "paper"
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"{folder}: holds no rows; name the repository's configs/paper by --rows")
    out: dict[str, PaperRow] = {}
    for file in files:
        value = load_yaml(file)
        if not isinstance(value, dict) or not isinstance(value.get("rows"), dict):
            raise UserError(f"{file}: expected `rows`, with a name for each row")
        shared = {k: v for k, v in value.items() if k != "rows"}
        for name, own in value["rows"].items():
            if name in out:
                raise UserError(f"{file}: row {name} is there twice")
            out[name] = _row(f"{file}, row {name}", name, shared, own)
    return out


def _row(where: str, name: str, shared: Mapping[str, Any], own: Any) -> PaperRow:
    if not isinstance(own, dict):
        raise UserError(f"{where}: expected keys and values")
    raw = {**shared, **own}
    raw["decode"] = {**shared.get("decode", {}), **own.get("decode", {})}
    for key in ("sources", "notes"):
        raw[key] = (*shared.get(key, ()), *own.get(key, ()))
    check_keys(raw, where, _KEYS, "key")
    if missing := [k for k in _KEYS if k not in raw]:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    check_keys(raw["decode"], where, OPTIONS, "option")
    if raw["task"] not in TASKS or raw["template"] not in TEMPLATES:
        raise UserError(
            f"{where}: task is one of {', '.join(TASKS)}, template of {', '.join(TEMPLATES)}"
        )
    for key, allowed in (("expected", UNKNOWN), ("measured", None)):
        number = isinstance(raw[key], (int, float)) and 0 <= raw[key] <= 100
        if not number and raw[key] != allowed:
            raise UserError(f"{where}: {key} is {raw[key]!r}; expected per cent or {allowed}")
    if not isinstance(raw["shots"], int) or not 0 <= raw["shots"] <= 100:
        raise UserError(f"{where}: shots is {raw['shots']!r}; expected a whole number")
    if raw["metric"] not in (UNKNOWN, *get_benchmark(raw["task"]).measures):
        raise UserError(f"{where}: metric {raw['metric']!r} is none of the task's")
    try:
        decode = DecodeConfig(**raw.pop("decode"))
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    return PaperRow(name=name, decode=decode, **raw)


def listing(rows: Mapping[str, PaperRow]) -> str:
    """A line for each row: name, expected, measured, canvas, shots, model."""
    cells = [["name", "expected", "measured", "canvas", "shots", "model"]]
    for r in rows.values():
        expected = f"{r.expected:.2f}" if isinstance(r.expected, (int, float)) else r.expected
        measured = "null" if r.measured is None else f"{r.measured:.2f}"
        canvas = str(r.decode.gen_length)
        cells.append([r.name, expected, measured, canvas, str(r.shots), r.model])
    return text_table(cells, len(cells[0]))


def describe(row: PaperRow) -> str:
    """Everything that is known of a row, a fact a line."""
    from leapjax.policies import POLICIES

    b, d = row.benchmark, row.decode
    own = {n: d.value(n) for n in POLICIES[d.policy].reads}
    shown = {n: getattr(d, n) for n in ("policy", "gen_length", "block_length", "cache")} | own
    facts = {
        "paper": row.paper,
        "model": row.model,
        "task": f"{row.task}, {row.shots} shots",
        "template": row.template,
        "prompt": b.prompt,
        "decode": ", ".join(f"{k}={v}" for k, v in shown.items() if v is not None),
        "post-processing": b.postprocess,
        "scorer": b.scorer,
        "metric": row.metric,
    }
    lines = [f"{k}: {v}" for k, v in facts.items()]
    lines += [f"source: {s}" for s in row.sources] + [f"note: {n}" for n in row.notes]
    return "\n".join([row.name, *(f"  {line}" for line in lines)]) + "\n"
