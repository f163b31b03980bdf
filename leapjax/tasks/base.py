"""What a task is: problems, their prompts, and a scorer."""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Problem:
    """One question with its worked answer.

    Attributes:
      id: stable name; the same problem always has the same id.
      question: the user's turn.
      answer: the reference solution, ending in a `#### number` line.
      final: the number after `####`, normalised by `normalise`.
      stratum: the group it is reported under.
      metadata: anything else worth keeping (template, operands).
    """

    id: str
    question: str
    answer: str
    final: str
    stratum: str = "all"
    metadata: dict = dataclasses.field(default_factory=dict)


_FINAL = re.compile(r"####\s*\$?\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?)")


def normalise(number: str) -> str:
    """One spelling a number: no thousands commas, no trailing zeros, no `+`."""
    text = number.replace(",", "")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, dot, rest = digits.partition(".")
    return sign + (whole.lstrip("0") or "0") + dot + rest


def extract_final(text: str) -> str | None:
    """The number after the first `####` of a solution, normalised.

    Args:
      text: a solution, the model's or the reference.

    Returns:
      The number, or None where the text names none.
    """
    found = _FINAL.search(text)
    return normalise(found.group(1)) if found else None


def score(text: str, problem: Problem) -> bool:
    """Whether a solution's final number is the problem's."""
    return extract_final(text) == problem.final
