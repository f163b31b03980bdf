"""What a task is: problems, their prompts, and a scorer."""

import dataclasses
import re
from collections.abc import Callable

from leapjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Problem:
    """One question with its worked answer."""

    id: str  # stable: the same problem always has the same id
    question: str  # the user's turn
    answer: str  # the reference solution, ending in a `#### number` line
    final: str  # the number after `####`, normalised by `normalise`
    stratum: str = "all"  # the group it is reported under
    metadata: dict = dataclasses.field(default_factory=dict)  # template, operands, …
    templates: tuple[str, ...] = ()  # wordings of its own, in place of the task's


# Generic wordings of a question, as `str.format` takes them; the first is the question alone.
TEMPLATES = (
    "{question}",
    "Question: {question}\nAnswer:",
    "Solve this problem.\n\n{question}",
    "{question}\n\nThink step by step, then give the final answer.",
    "Q: {question}\nA:",
    "Read the task and answer it.\nTask: {question}",
    "Here is a question for you. {question}",
    "{question} Write down every step of the solution.",
)
UNSEEN_TEMPLATES = (6, 7)  # places in TEMPLATES that no training uses

_FINAL = re.compile(r"####\s*\$?\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?)")
_LAST_LINE = re.compile(r"#### (-?[0-9][0-9,]*(?:\.[0-9]+)?)")


def normalise(number: str) -> str:
    """One spelling a number: no thousands commas, no trailing zeros, no `+`."""
    text = number.replace(",", "")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, dot, rest = digits.partition(".")
    return sign + (whole.lstrip("0") or "0") + dot + rest


def extract_final(text: str) -> str | None:
    """The number after the first `####` of a solution, normalised; None if there is none."""
    found = _FINAL.search(text)
    return normalise(found.group(1)) if found else None


def score(text: str, problem: Problem) -> bool:
    """Whether a solution's final number is right, by the lenient parser (`extract_final`).

    >>> four = Problem("a", "2 + 2?", "#### 4", "4")
    >>> score("####$ 4.0 pens", four), score("2 + 2 = 4", four)
    (True, False)
    """
    return extract_final(text) == problem.final


def score_strict(text: str, problem: Problem) -> bool:
    r"""Whether a solution ends in the line `#### number`, holds no other `####`, and is right.

    This is the strict parser: a currency sign, a unit or text after the number makes an answer
    wrong; `score` allows all of these. Whitespace around the whole text is ignored.

    >>> four = Problem("a", "2 + 2?", "#### 4", "4")
    >>> [score_strict(t, four) for t in ("2 + 2 = 4\n#### 4", "#### 4 pens", "#### 3\n#### 4")]
    [True, False, False]
    """
    *lines, last = text.strip().split("\n")
    found = _LAST_LINE.fullmatch(last)
    once = not any("####" in line for line in lines)
    return once and found is not None and normalise(found.group(1)) == problem.final


def distinct(draw: Callable[[], Problem], n: int, where: str) -> list[Problem]:
    """Draw until there are n problems of different ids, in the order drawn.

    `where` is what they are drawn from, for the message when a thousand draws in a row gave nothing
    new.
    """
    found: dict[str, Problem] = {}
    repeats = 0
    while len(found) < n:
        problem = draw()
        repeats = repeats + 1 if problem.id in found else 0
        if repeats > 1000:
            raise UserError(f"{where}: fewer than {n} different problems (found {len(found)})")
        found.setdefault(problem.id, problem)
    return list(found.values())
