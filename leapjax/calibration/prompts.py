"""What a calibration decodes, and when two answers agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from leapjax.errors import UserError
from leapjax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts that stand for those to come.

    Attributes:
      source: where they are from, for reports.
      records: as in a JSONL file (docs/contract.md, Records).
      task: whose extracted answers are compared; None compares texts.
    """

    source: str
    records: Sequence[dict[str, Any]]
    task: Task | None = None

    @property
    def agreement(self) -> str:
        """For reports: what is equal where two answers agree."""
        return f"the extracted answer ({self.task.name})" if self.task else "the text"


def answer_key(extract: Callable[[str], Hashable | None] | None, text: str) -> Hashable:
    """What two answers have in common if they agree.

    Args:
      extract: takes the final answer out of a text; None compares texts.
      text: an answer.

    Returns:
      The extracted answer; the text itself where there is none to extract.
    """
    found = extract(text) if extract else None
    return ("text", text) if found is None else ("answer", found)


def read(path: str, task: Task | None = None, limit: int | None = None) -> Prompts:
    """Prompts of a JSONL file.

    Args:
      path: the file, a URL, or `-` for stdin.
      task: whose extracted answers are compared.
      limit: only the first so many.

    Raises:
      UserError: a record is unusable or sets options, which are the ladder's.
    """
    import itertools

    from leapjax.jobs.source import Input
    from leapjax.jsonl import parse_line

    records = []
    for item in itertools.islice(Input(path).items(), limit):
        record = parse_line(item.given, item.where)
        if record.get("options"):
            raise UserError(
                f"{item.where}: has options, but the ladder sets them; remove them there"
            )
        # The number of the line is the id of a record without one.
        records.append({"id": item.line} | {k: v for k, v in record.items() if v is not None})
    if not records:
        raise UserError(f"{path}: holds no prompts")
    return Prompts(path, records, task)


def generate(
    task: Task,
    split: str | None = None,
    strata: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> Prompts:
    """A task's own problems as prompts; arguments as in `Task.problems`."""
    problems = task.problems(split, strata, limit, seed)
    name = f"{task.name}, split {split or task.splits[0]}, seed {seed}"
    return Prompts(name, [task.record(p) for p in problems], task)
