"""A published benchmark: its file, the prompt built from it, and who is right.

    line of the data ─▶ parse ─▶ Problem ─▶ ask, behind the shots ─▶ model ─▶ text
                                            text ─▶ measures, or program ─▶ execution

Prompts follow EleutherAI's lm-evaluation-harness, which the papers ran.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from leapjax.errors import UserError
from leapjax.tasks.base import Problem


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """How one benchmark is asked and scored.

    `shot` gives a solved problem as it stands before the question, without the blank line that
    follows it (None: there are never shots). An answer is either scored (`score`:
    `(text, problem) -> {measure: right}`) or executed (`program`: `(text, problem) -> source`; then
    there are no measures).
    """

    name: str  # of the harness's task
    parse: Callable[[Mapping[str, Any], str], Problem]  # (record, where); raises `UserError`
    ask: Callable[[Problem], str]  # a problem's own part of the prompt
    fields: tuple[str, ...]  # what a line of the data holds
    measures: tuple[str, ...]  # the first one is the usual
    prompt: str  # this and the next two are for people
    postprocess: str
    scorer: str
    shot: Callable[[Problem], str] | None = None
    stop: tuple[str, ...] = ()  # strings that end an answer
    score: Callable[[str, Problem], dict[str, bool]] | None = None
    program: Callable[[str, Problem], str] | None = None  # its run decides
    random_shots: bool = False  # drawn anew for each problem; else the first
    fixed_shots: str | None = None  # file below `lm_eval/tasks` that holds the shots


def texts(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> list[str]:
    """The texts under some names of a record; `where` is how a message calls its line."""
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
