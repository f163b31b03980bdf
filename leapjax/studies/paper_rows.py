"""The published rows: what a paper ran, what it reports, and where that is written.

A file of `configs/paper/` is a paper. It holds tables, a table holds methods, and each level adds
to the one above it: a method's options to its table's, its sources to the file's. A list holds a
value for each of the `tasks`, anything else goes for all of them. `unknown` stands for what no
source tells; nothing is guessed.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from leapjax.config import OPTIONS, DecodeConfig, check_keys
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.studies.tables import DEFAULTS, label, markdown_table
from leapjax.tasks import benchmark as benchmarks

UNKNOWN = "unknown"
TEMPLATES = ("user_turn", "raw", "bos", UNKNOWN)
TASKS = ("gsm8k", "ifeval", "humaneval", "mbpp", "minerva_math")


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One published number and how it was made; None is what no source tells."""

    name: str  # as `--reproduce` takes it
    paper: str  # title and number
    own: bool  # the paper proposes the method; otherwise it reran another's
    model: str  # hub id
    task: str  # of the harness
    shots: int  # solved problems ahead of the question
    # `user_turn` (the whole context in one user's turn), `raw` (the context alone), `bos` (the
    # context behind the bos token), or `unknown`.
    template: str
    decode: DecodeConfig
    expected: float | str  # per cent, or `unknown`
    tokens_per_s: float | None = None
    passes: int | None = None  # over the whole benchmark
    measured: float | None = None  # per cent, by us
    sources: tuple[str, ...] = ()  # where the setting and the number stand
    notes: tuple[str, ...] = ()  # what is uncertain or differs

    @property
    def benchmark(self) -> benchmarks.Benchmark:
        """Prompt and scorer."""
        return get_benchmark(self.task)

    @property
    def metric(self) -> str:
        """The measure that the paper reports; `unknown` where the task has several."""
        measures = self.benchmark.measures
        return measures[0] if len(measures) == 1 else UNKNOWN

    @property
    def setting(self) -> str:
        """What was decoded: rows of one setting report the same experiment."""
        return json.dumps([self.model, self.task, self.shots, self.decode.to_dict()])

    @property
    def short(self) -> str:
        """The paper without its number."""
        return self.paper.partition(",")[0]


# Layers and width of published models, by the beginning of their names.
_SHAPES = {"LLaDA-8B": (32, 4096), "LLaDA-1.5": (32, 4096), "Dream-v0": (28, 3584)}
_NEEDED = ("paper", "tasks", "model", "template", "decode", "expected")
# What a cell may hold: key -> (the value that stands for none, largest number).
_NUMBERS = {
    "expected": (UNKNOWN, 100),
    "measured": (None, 100),
    "tokens_per_s": (None, 1e9),
    "passes": (None, 1e12),
}


def get_benchmark(name: str) -> benchmarks.Benchmark:
    """The benchmark of a name in `TASKS`."""
    import importlib

    module = "competition_math" if name == "minerva_math" else name
    return importlib.import_module(f"leapjax.tasks.{module}").BENCHMARK


def load(folder: Path | None = None) -> dict[str, PaperRow]:
    """Every row of a folder's YAML files, by name: FILE-TABLE-TASK, and -METHOD of others' methods.

    `folder` None is `configs/paper` of the repository that this package lies in.
    """
    from leapjax.options import load_yaml

    folder = folder or Path(__file__).parents[2] / "configs" / "paper"
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"{folder}: holds no rows; name the repository's configs/paper by --rows")
    out: dict[str, PaperRow] = {}
    for file in files:
        paper = _mapping(load_yaml(file), str(file))
        own = paper.get("own")
        for key, table in _mapping(paper.get("tables"), f"{file}, tables").items():
            where = f"{file}, table {key}"
            shared = _merged(paper, _mapping(table, where))
            for method, cells in _mapping(table.get("methods"), f"{where}, methods").items():
                raw = _merged(shared, _mapping(cells, f"{where}, method {method}"))
                end = "" if method == own else f"-{method}"
                for name, row in _rows(f"{where}, method {method}", raw):
                    name = f"{file.stem}-{key}-{name}{end}"
                    out[name] = dataclasses.replace(row, name=name, own=method == own)
    return out


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected keys and values")
    return value


def _merged(above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """A level's keys over those of the level above; options and lists of texts add up."""
    out = {k: v for k, v in {**above, **below}.items() if k not in ("tables", "methods")}
    out["decode"] = {**above.get("decode", {}), **below.get("decode", {})}
    for key in ("sources", "notes"):
        out[key] = [*above.get(key, ()), *below.get(key, ())]
    return out


def _rows(where: str, raw: Mapping[str, Any]) -> Iterator[tuple[str, PaperRow]]:
    """A method's rows, one a task, each with the task's name in the row's."""
    check_keys(raw, where, (*_NEEDED, *_NUMBERS, "own", "sources", "notes"), "key")
    if missing := [k for k in _NEEDED if k not in raw]:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    check_keys(raw["decode"], where, OPTIONS, "option")
    tasks = _mapping(raw["tasks"], f"{where}, tasks")
    texts = {k: tuple(raw[k]) for k in ("sources", "notes")}
    columns = {k: raw.get(k, none) for k, (none, _) in _NUMBERS.items()}
    for key, value in [*columns.items(), *raw["decode"].items()]:
        if isinstance(value, list) and len(value) != len(tasks):
            raise UserError(f"{where}: {key} has {len(value)} values for {len(tasks)} tasks")
    for i, (task, shots) in enumerate(tasks.items()):

        def cell(value: Any, i: int = i) -> Any:
            return value[i] if isinstance(value, list) else value

        at = f"{where}, {task}"
        if task not in TASKS or raw["template"] not in TEMPLATES:
            allowed = f"task is one of {', '.join(TASKS)}, template of {', '.join(TEMPLATES)}"
            raise UserError(f"{at}: {allowed}")
        if not isinstance(shots, int) or not 0 <= shots <= 100:
            raise UserError(f"{at}: shots is {shots!r}; expected a whole number")
        numbers = {key: cell(value) for key, value in columns.items()}
        for key, (none, most) in _NUMBERS.items():
            number = isinstance(numbers[key], (int, float)) and 0 <= numbers[key] <= most
            if not number and numbers[key] != none:
                unit = " per cent" if most == 100 else " a number"
                raise UserError(f"{at}: {key} is {numbers[key]!r}; expected{unit} or {none}")
        try:
            decode = DecodeConfig(**{k: cell(v) for k, v in raw["decode"].items()})
        except UserError as e:
            raise UserError(f"{at}: {e}") from e
        about = {k: raw[k] for k in ("paper", "model", "template")}
        made = {"task": task, "shots": shots, "decode": decode, **about, **numbers, **texts}
        yield task.removeprefix("minerva_"), PaperRow(name="", own=False, **made)


def published_model(path: str, config: ModelConfig, models: Collection[str]) -> str:
    """Which published model a checkpoint is.

    `path` is a hub id, or a folder: its own name, or that of the hub's cache, is the model's.
    Refused where its name is none of theirs, or its shape is another model's.
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


def by_setting(rows: Iterable[PaperRow]) -> dict[str, list[PaperRow]]:
    """Rows that report the same experiment, the paper that proposes the method first."""
    out: dict[str, list[PaperRow]] = {}
    for row in sorted(rows, key=lambda r: not r.own):
        out.setdefault(row.setting, []).append(row)
    return out


def listing(rows: Mapping[str, PaperRow]) -> str:
    """A line for each method of a paper's table: its rows' names, with TASK, and numbers."""
    lines: dict[str, dict[str, list[str]]] = {}
    for r in rows.values():
        task = r.task.removeprefix("minerva_")
        ours = "" if r.measured is None else f" (ours {r.measured:.2f})"
        line = lines.setdefault(r.model, {}).setdefault(r.name.replace(f"-{task}", "-TASK"), [])
        line.append(f"{task} {_percent(r.expected)}{ours}")
    out = []
    for model in sorted(lines, key=str.casefold):
        out.append(model)
        out += [f"  {name:<34} {', '.join(told)}" for name, told in lines[model].items()]
    out.append("published accuracy in per cent; --reproduce NAME runs a row, with a task for TASK")
    return "\n".join(out) + "\n"


def _percent(value: float | str | None) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else str(value or "")


def cells_of(row: PaperRow, same: Iterable[PaperRow]) -> list[str]:
    """Task, setting, published, rerun by others: how every table shows a row.

    `same` is every row of its setting.
    """
    d, told = row.decode, {True: [], False: []}
    for r in same:
        speed = "" if r.tokens_per_s is None else f" at {r.tokens_per_s:g} tokens/s"
        speed += "" if r.passes is None else f" in {r.passes:,} passes"
        told[r.own].append(f"{_percent(r.expected)}{speed} ({r.short})")
    own = label(d, without=("early_stop",))
    places = f"canvas {d.gen_length}, block {d.block_length}" + f", cache {d.cache}" * bool(d.cache)
    setting = f"{d.policy}{f', {own}' * (own != DEFAULTS)}; {places}"
    return [f"{row.task}, {row.shots} shots", setting, *("; ".join(x) for x in told.values())]


def comparison(rows: Mapping[str, PaperRow]) -> str:
    """Markdown: published, rerun by others, ours; a table a model, empty where nobody ran a row."""
    cells: dict[str, list[list[str]]] = {}
    for same in by_setting(rows.values()).values():
        ours = next((r.measured for r in same if r.measured is not None), None)
        line = [*cells_of(same[0], same), _percent(ours)]
        cells.setdefault(same[0].model, []).append(line)
    head = ["task", "setting", "published", "rerun by others", "ours"]
    return "\n".join(
        f"### {model}\n\n{markdown_table([head, *sorted(cells[model])], len(head))}"
        for model in sorted(cells.keys() - {UNKNOWN}, key=str.casefold)
    )


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
        "tokens/s": row.tokens_per_s,
        "passes": row.passes,
    }
    lines = [f"{k}: {v}" for k, v in facts.items() if v is not None]
    lines += [f"source: {s}" for s in row.sources] + [f"note: {n}" for n in row.notes]
    return "\n".join([row.name, *(f"  {line}" for line in lines)]) + "\n"
