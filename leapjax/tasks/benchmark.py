"""A published benchmark: its file, the prompt built from it, and who is right.

    line of the data ─▶ parse ─▶ Problem ─▶ ask, behind the shots ─▶ model ─▶ text
                                            text ─▶ measures, or program ─▶ execution

Prompts follow EleutherAI's lm-evaluation-harness, which the papers ran.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from leapjax.errors import UserError
from leapjax.tasks.base import Problem


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """How one benchmark is asked and scored.

    Attributes:
      name: of the harness's task.
      parse: `(record, where) -> Problem`; raises `UserError` where a field is missing.
      ask: a problem's own part of the prompt.
      shot: a solved problem as it stands before the question, without the blank line that
        follows it; None where there are never shots.
      stop: strings that end an answer.
      measures: what is counted, by name: `(text, problem) -> {name: right}`, the first one
        the usual; empty where answers are executed.
      score: computes them; None where answers are executed.
      program: `(text, problem) -> source` whose run decides; None where nothing is executed.
      random_shots: the harness draws the shots anew for each problem; otherwise the first.
      fixed_shots: file of the harness (below `lm_eval/tasks`) that holds the shots.
      fields: what a line of the data holds.
      prompt: the prompt's form, for people.
      postprocess: what is done to an answer, for people.
      scorer: how it is judged, for people.
    """

    name: str
    parse: Callable[[Mapping[str, Any], str], Problem]
    ask: Callable[[Problem], str]
    fields: tuple[str, ...]
    measures: tuple[str, ...]
    prompt: str
    postprocess: str
    scorer: str
    shot: Callable[[Problem], str] | None = None
    stop: tuple[str, ...] = ()
    score: Callable[[str, Problem], dict[str, bool]] | None = None
    program: Callable[[str, Problem], str] | None = None
    random_shots: bool = False
    fixed_shots: str | None = None


def texts(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> list[str]:
    """The texts under some names.

    Args:
      record: a line of a file.
      names: the fields.
      where: how a message calls the line.

    Raises:
      UserError: a field is missing, empty or no text.
    """
    found = [record.get(n) for n in names]
    for name, value in zip(names, found, strict=True):
        if not isinstance(value, str) or not value:
            raise UserError(f"{where}: expected a text under {name}")
    return [str(v) for v in found]


def identify(where: str, text: str) -> str:
    """A stable id from a line's place and a problem's text."""
    return f"{where.rsplit(' ', 1)[-1]}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


def read(
    path: str, parse: Callable[[Mapping[str, Any], str], Problem], limit: int | None = None
) -> list[Problem]:
    """The problems of a JSONL file (the first `limit`), in its order; `parse` is a benchmark's."""
    from leapjax.data_files import read_jsonl

    out = [parse(record, where) for where, record in read_jsonl(path, limit)]
    if not out:
        raise UserError(f"{path}: holds no problems")
    return out
