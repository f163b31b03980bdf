"""Run an evaluation: every row answers the same trials, and settings of equal cost are found.

problems of each seed x templates ─▶ trials ─▶ every row ─▶ answers, kept as they come
trials to tune on ─▶ a setting of equal steps or time per policy ─▶ a further row
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from leapjax import tasks
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.policies import POLICIES
from leapjax.policies.names import row_names
from leapjax.studies import equal_cost, runner
from leapjax.studies.policy_rows import BASELINE, Row, setting
from leapjax.studies.runner import Trial
from leapjax.tasks import Task
from leapjax.tasks.base import Problem

KINDS = {"steps": "steps", "time": "seconds"}  # of `--equal` -> what is equal


def trials(
    task: Task, draws: Sequence[Sequence[Problem]], templates: Sequence[int], sampled: bool
) -> list[Trial]:
    """Every problem of every draw in every template, none of them twice.

    `sampled` tokens make the same problem another trial under another seed. A further seed that
    changes nothing is refused.
    """
    made: dict[tuple, Trial] = {}
    for seed, problems in enumerate(draws):
        before, noise = len(made), seed if sampled else 0
        for template in templates:
            for p in problems:
                made.setdefault((p.id, template, noise), Trial(p, template, noise))
        if len(made) == before:
            raise UserError(
                f"--seeds {len(draws)}: task {task.name} draws the same problems for every seed, "
                "and nothing is sampled; remove --seeds, or set a temperature in decode.yaml"
            )
    return list(made.values())


def manifest(
    lm: LM, task: Task, split: str, answers: Sequence[Mapping[str, Any]], batch_size: int
) -> dict[str, Any]:
    """What the answers of all rows depend on, by name, except the rows' own options.

    `answers` are any row's.
    """
    made = runner.provenance(lm, {}, batch_size)
    del made["options"]
    return made | {
        "task": task.name,
        "split": split,
        "problems": _digest({a["problem"] for a in answers}),
        "prompts": _digest({a["id"].partition("/")[2] for a in answers}),
        "templates": sorted({a["template"] for a in answers}),
        "seeds": sorted({a["seed"] for a in answers}),
    }


def _digest(lines: Collection[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def equal_rows(
    rows: Sequence[Row],
    answers: Callable[[DecodeConfig], Sequence[Mapping[str, Any]]],
    *,
    kind: str,
    reference: str,
    tolerance: float,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """A row per policy and cache whose mean cost is the reference's, on problems to tune on.

    `answers` gives a setting's, with `seconds`, to trials that are not reported; the reference is
    a row's policy in each cache that has a search. Returns the rows, and what is known of each
    search, such as the mean costs of the reference (`target`) and of the row (`tuned`).
    """
    made, told = [], []
    for cache in dict.fromkeys(row.config.cache for row in rows):
        here = [row for row in rows if row.config.cache == cache]
        lead = next((row for row in here if row.policy == reference), None)
        if lead is None:
            continue

        def cost(config: DecodeConfig) -> float:
            found = answers(config)
            return sum(a[KINDS[kind]] for a in found) / len(found)

        target = cost(lead.config)
        others = {row.config.policy: row for row in reversed(here)}
        for row in reversed(others.values()):
            if row.config.policy == lead.config.policy or not POLICIES[row.config.policy].tuned:
                continue
            found = equal_cost.search(cost, row.config, target, tolerance)
            made.append(Row(row.policy, found.config, kind))
            facts = {"equal": kind, "cache": cache, "reference": lead.label, "target": target}
            facts |= {"label": made[-1].label, "tuned": found.cost, "tried": found.tried}
            told.append(facts)
    return made, told


def templates(task: Task, given: str) -> list[int]:
    """The places in a task's templates that `--templates` asks for.

    `given` is a number, for the first so many, or `unseen`.
    """
    if given == "unseen" and task.unseen_templates:
        return list(task.unseen_templates)
    count = int(given) if given.isdecimal() else 0
    if not 1 <= count <= len(task.templates):
        unseen = ", or unseen" if task.unseen_templates else ""
        raise UserError(
            f"--templates is {given!r}; expected 1 to {len(task.templates)}{unseen} "
            f"for task {task.name}"
        )
    return list(range(count))


def reference(rows: Sequence[Row], name: str | None) -> str:
    """The row whose cost the others are to have: `--reference`, else localleap, else the last."""
    policies = [row.policy for row in rows]
    if len({row.config.policy for row in rows}) == 1:
        raise UserError("--equal needs rows of at least two policies; see --policies")
    if name is None:
        return "localleap" if "localleap" in policies else policies[-1]
    (wanted,) = row_names([name], "--reference")
    if wanted not in policies:
        raise UserError(f"--reference {name}: is not among --policies ({', '.join(policies)})")
    return wanted


def tuning(
    task: Task, name: str | None, limit: int, places: Sequence[int], reported: Sequence[Problem]
) -> tuple[list[Trial], str]:
    """The trials that settings of equal cost are found on, and what they are, for the report.

    `name` is another task to take them from; None takes the split `tune` of this one. The problems
    take the evaluation's templates in turns; none of them is reported.
    """
    other = task if name is None else tasks.get(name)
    if name is None and "tune" not in task.splits:
        raise UserError(
            f"--equal finds thresholds on problems that are not reported, and task {task.name} has "
            "no split tune; name a task by --tune-task, such as gsm8k:train.jsonl"
        )
    split = "tune" if "tune" in other.splits else other.splits[0]
    strata = [s for s in dict.fromkeys(p.stratum for p in reported) if s in other.strata]
    problems = other.problems(split, strata, limit)
    asked = {p.question for p in reported}
    if shared := sum(p.question in asked for p in problems):
        raise UserError(
            f"{shared} of the {len(problems)} problems to find thresholds on are among the "
            "reported ones; choose another --split, or others by --tune-task"
        )
    made = [Trial(p, places[i % len(places)], 0) for i, p in enumerate(problems)]
    return made, f"{len(made)} problems of {other.name}, split {split}"


def is_baseline(row: Mapping[str, Any]) -> bool:
    """Whether a report's row is greedy without a cache."""
    return (row["policy"], row["cache"]) == BASELINE and not row.get("equal")


def described(row: Row) -> dict[str, Any]:
    """A row as reports and other folders know it."""
    return {
        "policy": row.policy,
        "label": row.label,
        "cache": row.config.cache,
        "equal": row.equal,
        "setting": setting(row.config),
        "options": row.config.to_dict(),
    }
