"""Answers under many settings: settings × problems as one stream for each compiled structure.

configs ─▶ by structure ─▶ (config, problem) requests ─▶ one stream ─▶ answers on disk
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.config import OPTIONS, DecodeConfig, per_row
from leapjax.evaluation.measures import counts
from leapjax.evaluation.results import Results
from leapjax.evaluation.runner import row_settings
from leapjax.evaluation.settings import Row
from leapjax.lm import LM
from leapjax.tasks import Task
from leapjax.tasks.base import Problem

Answers = Mapping[DecodeConfig, Sequence[Mapping[str, Any]]]


def greedy(config: DecodeConfig) -> DecodeConfig:
    """Greedy decoding on a setting's canvas: one token a step, without a cache.

    Args:
      config: whose canvas and block.
    """
    return DecodeConfig(
        policy="low_confidence", gen_length=config.gen_length, block_length=config.block_length
    )


def structure(config: DecodeConfig) -> tuple[Any, ...]:
    """What configs have in common that are rows of one stream.

    Args:
      config: decode options.
    """
    options = config.to_dict()
    return tuple((name, options[name]) for name in options if not OPTIONS[name].traced)


def numbers(config: DecodeConfig) -> dict[str, Any]:
    """The values in force of what a row may set for itself, those that its policy reads.

    Args:
      config: decode options.
    """
    every = {name: config.value(name) for name in per_row()}
    return {name: value for name, value in every.items() if value is not None}


def key(config: DecodeConfig) -> str:
    """A short name of a setting among those of its structure; the same in every run.

    Args:
      config: decode options.
    """
    text = json.dumps(numbers(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def decode(
    lm: LM,
    task: Task,
    problems: Sequence[Problem],
    configs: Sequence[DecodeConfig],
    folder: Path | None,
    *,
    batch_size: int,
    details: bool = False,
    show: Callable[[int], None] = lambda done: None,
) -> dict[DecodeConfig, list[dict[str, Any]]]:
    """Answer every problem under every setting, but for the answers kept on disk.

    Args:
      lm: the model.
      task: asks and scores.
      problems: in the order of the answers returned.
      configs: settings.
      folder: where answers are kept as they come; None keeps them in memory.
      batch_size: rows decoded at once.
      details: answers also hold `output_ids`, `commit_step`, `commit_kind` and
        `commit_confidence`.
      show: takes the number of answers there are, as they come.

    Returns:
      Setting -> one answer per problem: `text`, `finish_reason`, `correct`, the fields of
      `leapjax.evaluation.measures.Counts`, and the details.
    """
    groups: dict[tuple, list[DecodeConfig]] = {}
    for config in dict.fromkeys(configs):
        groups.setdefault(structure(config), []).append(config)
    out: dict[DecodeConfig, list[dict[str, Any]]] = {}
    before = 0
    for group in groups.values():
        name = f"{group[0].policy}-{group[0].cache}" + ("-details" if details else "")
        with Results(folder, name, _settings(lm, group[0], batch_size)) as results:
            start = before
            _fill(
                lm,
                task,
                problems,
                group,
                results,
                batch_size,
                details,
                lambda done, start=start: show(start + done),
            )
            kept = results.answers
        for config in group:
            out[config] = [
                answer | {"correct": task.score(answer["text"], p)}
                for p in problems
                for answer in (kept[f"{key(config)}/{p.id}"],)
            ]
        before += len(group) * len(problems)
    return out


def _settings(lm: LM, config: DecodeConfig, batch_size: int) -> dict[str, Any]:
    """What the answers of a structure share; each line names its own numbers."""
    settings = row_settings(lm, Row(config.policy, config), batch_size)
    shared = {n: v for n, v in settings["options"].items() if not OPTIONS[n].traced}
    return settings | {"options": shared}


def _fill(lm, task, problems, group, results, batch_size, details, show) -> None:
    todo = [
        (config, number)
        for config in group
        for number, problem in enumerate(problems)
        if f"{key(config)}/{problem.id}" not in results.answers
    ]
    kept = len(group) * len(problems) - len(todo)
    show(kept)
    if not todo:
        return
    asked = [lm.request(task.record(p), group[0]) for p in problems]
    requests = [dataclasses.replace(asked[number], config=config) for config, number in todo]
    engine = lm.engine_for(len(requests), batch_size)
    for done, (index, c) in enumerate(engine.as_completed(requests), 1):
        config, number = todo[index]
        answer = {
            "id": f"{key(config)}/{problems[number].id}",
            "numbers": numbers(config),
            "text": c.text,
            "finish_reason": c.finish_reason,
        }
        answer |= counts(c, lm.config.eos_token_id).to_dict()
        if details:
            for field in ("output_ids", "commit_step", "commit_kind"):
                answer[field] = getattr(c, field)
            answer["commit_confidence"] = [round(x, 5) for x in c.commit_confidence]
        results.add(answer)
        show(kept + done)
