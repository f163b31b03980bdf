"""Run a published row: `leapjax evaluate --reproduce NAME`.

row, data, shots ─▶ prompts ─▶ model ─▶ answers ─▶ measures
"""

import ast
import collections
import hashlib
import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.studies.paper_rows import UNKNOWN, PaperRow
from leapjax.studies.statistics import wilson
from leapjax.tasks import ifeval
from leapjax.tasks.base import Problem
from leapjax.tasks.benchmark import Benchmark, read

# The harness's seed for drawing shots (its `--seed`, third number).
SHOTS_SEED = 1234


def obstacle(row: PaperRow, model: str, config: ModelConfig, folder: Path) -> str | None:
    """Why a row can't be run, or None.

    `model` is the published model that the checkpoint is.
    """
    if row.model != model:
        return f"another model: {row.model}" if row.model != UNKNOWN else "its model is unknown"
    if row.template == UNKNOWN:
        return "no source tells its template"
    if not (folder / f"{row.task}.jsonl").is_file():
        return f"{row.task}.jsonl missing"
    try:
        row.decode.for_model(config)
        if not (folder / f"{row.task}-shots.jsonl").is_file():
            shots_of(row, folder)
        if row.task == "ifeval":
            ifeval.checker()
    except UserError as e:
        return str(e)
    return None


def problems_of(row: PaperRow, folder: Path, limit: int | None = None) -> list[Problem]:
    """The problems of a row's task, `TASK.jsonl`."""
    data = str(folder / f"{row.task}.jsonl")
    found = read(data, row.benchmark.parse, limit)
    twice = collections.Counter(p.id for p in found).most_common(1)[0]
    if twice[1] > 1:
        raise UserError(f"{data}: problem {twice[0]} is there twice; keep one")
    return found


def shots_of(row: PaperRow, folder: Path) -> list[Problem]:
    """The solved problems that shots come from, `TASK-shots.jsonl`.

    For drawn shots that is the training split; fixed ones stand in it in their order, or come from
    an installed lm-eval.
    """
    benchmark, file = row.benchmark, folder / f"{row.task}-shots.jsonl"
    if not row.shots:
        return []
    if file.is_file():
        found = read(str(file), benchmark.parse)
    elif benchmark.fixed_shots:
        found = _harness_shots(benchmark)
    else:
        raise UserError(f"{file.name} missing")
    if len(found) < row.shots:
        raise UserError(f"{file}: has {len(found)} problems; {row.name} needs {row.shots} shots")
    return found


def _harness_shots(benchmark: Benchmark) -> list[Problem]:
    """Fixed shots as the installed harness has them, read without importing its module."""
    spec = importlib.util.find_spec("lm_eval")
    where = f"lm_eval/tasks/{benchmark.fixed_shots}"
    missing = UserError(
        f"{benchmark.name}-shots.jsonl missing, and {where} of EleutherAI's harness, which leapjax"
        "[eval] installs"
    )
    if spec is None or not spec.submodule_search_locations:
        raise missing
    file = Path(spec.submodule_search_locations[0]) / "tasks" / str(benchmark.fixed_shots)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        maker = next(n for n in tree.body if getattr(n, "name", None) == "list_fewshot_samples")
        made = next(n for n in ast.walk(maker) if isinstance(n, ast.Return)).value
        values = ast.literal_eval(made) if made else []
    except (OSError, SyntaxError, StopIteration, ValueError) as e:
        raise missing from e
    return [benchmark.parse(v, f"{where} shot {i}") for i, v in enumerate(values, 1)]


def prompts(row: PaperRow, problems: Sequence[Problem], shots: Sequence[Problem]) -> list[str]:
    """The context of every problem, as the harness puts it together.

    `problems` are the first of the data file, in its order: drawn shots depend on it. Texts are
    before any template.
    """
    benchmark, rng = row.benchmark, random.Random(SHOTS_SEED)
    out = []
    for problem in problems:
        chosen: Sequence[Problem] = shots[: row.shots]
        if benchmark.random_shots and row.shots:
            chosen = rng.sample(list(shots), row.shots)
        ahead = "".join(f"{benchmark.shot(s)}\n\n" for s in chosen if benchmark.shot)
        out.append(ahead + benchmark.ask(problem))
    return out


def records(row: PaperRow, problems: Sequence[Problem], texts: Sequence[str], codec) -> list[dict]:
    """What the model is asked, through the row's template.

    Each id is the problem's, `@`, and a hash of the prompt.
    """
    if row.template == "user_turn" and not codec.is_instruct:
        raise UserError(f"{row.name} uses the chat template and the checkpoint has none")
    out = []
    for problem, text in zip(problems, texts, strict=True):
        if row.template == "user_turn":
            ids = codec.encode_chat([{"role": "user", "content": text}], codec.template_options)
        else:
            ids = codec.encode_prompt(text, raw=True)
            # What the papers' `add_bos_token=true` does, once.
            bos = [codec.bos_id] if row.template == "bos" and codec.bos_id is not None else []
            ids = ids if ids[:1] == bos else [*bos, *ids]
        # Drawn shots depend on the problems before: another prompt is another answer.
        digest = hashlib.blake2b(" ".join(map(str, ids)).encode(), digest_size=6).hexdigest()
        record = {"id": f"{problem.id}@{digest}", "prompt_ids": ids}
        out.append(record | {"stop": list(row.benchmark.stop)})
    return out


def verdicts(
    row: PaperRow,
    problems: Sequence[Problem],
    answers: Sequence[Mapping[str, Any]],
    *,
    execute: bool,
    show: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any] | None]:
    """Score the answers.

    For each problem the measures (and how the program ended), or None if it is not scored:
    programs are only run if `execute`.
    """
    benchmark = row.benchmark
    given = [(str(a["text"]), p) for a, p in zip(answers, problems, strict=True)]
    if benchmark.score:
        return [dict(benchmark.score(text, p)) for text, p in given]
    if benchmark.program and execute:
        from leapjax.tasks.program_execution import run_all

        sources = [benchmark.program(text, p) for text, p in given]
        name = benchmark.measures[0]
        return [{name: o.passed, "reason": o.reason} for o in run_all(sources, show=show)]
    return [None] * len(given)


def samples(
    row: PaperRow,
    problems: Sequence[Problem],
    answers: Sequence[Mapping[str, Any]],
    judged: Sequence[Mapping[str, Any] | None],
) -> list[dict[str, Any]]:
    """A line for each problem, for people and other scorers.

    `program` is one file to run, answer and tests; `verdict` is None where nothing was scored.
    """
    out = []
    for p, answer, verdict in zip(problems, answers, judged, strict=True):
        line = {"task_id": p.id, "text": str(answer["text"]), "verdict": verdict}
        if row.benchmark.program:
            line["program"] = row.benchmark.program(line["text"], p)
        out.append(line)
    return out


def measured(
    row: PaperRow,
    answers: Sequence[Mapping[str, Any]],
    judged: Sequence[Mapping[str, Any] | None],
) -> dict[str, Any]:
    """The numbers of a row that was run, JSON-ready.

    Shares are in per cent, with 95 % intervals; None where nothing was scored.
    """
    n, scored = len(answers), [v for v in judged if v is not None]
    found = {}
    for name in row.benchmark.measures if scored else ():
        right = sum(bool(v[name]) for v in scored)
        interval = [100 * end for end in wilson(right, n)]
        found[name] = {"value": 100 * right / n, "interval": interval, "right": right}
    seconds = sum(a["seconds"] for a in answers)
    return {
        "measured": found or None,
        "n": n,
        "steps": sum(a["steps"] for a in answers) / n,
        "seconds": round(seconds, 3),
        "tokens_per_s": sum(a["tokens"] for a in answers) / max(seconds, 1e-9),
    }
