r"""MATH (arXiv 2103.03874) with Minerva's prompt (arXiv 2206.14858): `minerva_math`.

An answer is read in two ways: from Minerva's closing sentence, as the harness's
`exact_match` does, and from the last `\boxed{…}`. Both are compared with the reference's
box after the same normalisation. The harness also lets a computer algebra system decide
about unequal spellings; this does not, so it counts no more than the harness.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from leapjax.errors import UserError
from leapjax.tasks.base import Problem
from leapjax.tasks.benchmark import Benchmark, identify, texts

_SENTENCE = re.compile(r"Final Answer: The final answer is(.*?)\.? I hope it is correct")
_UNITS = re.compile(
    r"(?<!\\)\b(?:square|units?|degrees?|dollars?|cents?|points?|hours?|minutes?|seconds?|"
    r"inch(?:es)?|feet|ft|miles?|mph|km|cm|gm|meters?|pounds?|ways?|integers?|digits?|"
    r"students?|meals?|edges?|multiples?)\b"
)
_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox|overline)\{([^{}]*)\}")
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def boxed(text: str) -> str | None:
    r"""What the last `\boxed` or `\fbox` of a text holds.

    The contents have balanced braces, or are the token after a box without braces. None where there
    is no box or it never closes.
    """
    found = list(re.finditer(r"\\(?:boxed|fbox)", text))
    if not found:
        return None
    rest = text[found[-1].end() :]
    if not rest.lstrip(" ").startswith("{"):
        word = re.match(r" *([^\s$.]+)", rest)
        return word.group(1) if word else None
    rest = rest.lstrip(" ")
    depth = escaped = 0
    for at, character in enumerate(rest):
        if escaped:
            escaped = 0
        elif character == "\\":
            escaped = 1
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if not depth:
                return rest[1:at]
    return None


def normalise(answer: str) -> str:
    r"""One spelling for an answer.

    Left out: what precedes the last `=`, dollar signs, units, text commands, spacing,
    `\left` and `\right`, degree signs and a final full stop. Unified: fractions and roots
    without braces, `dfrac` and `tfrac`, thousands commas.
    """
    text = answer.split("=")[-1].strip()
    inner = re.search(r"(?<!\\)\$(.+?)(?<!\\)\$", text)
    text = inner.group(1) if inner else text
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\^\{?\\circ\}?|\\[!,;: ]|\\?\$|\\?%|~", "", text)
    text = text.replace("{,}", ",")
    while (plain := _WRAPPED.sub(r" \1 ", text)) != text:
        text = plain
    text = _UNITS.sub("", text)
    text = re.sub(r"\s+", " ", text).strip().removesuffix(".").strip()
    # A command keeps its end (`\pi r`, `\frac 1 2`) until its arguments are in braces.
    text = re.sub(r"\\sqrt *(\[[^\]]*\])? *([^\s{\[\\])", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\\frac *([^\s{\\]) *([^\s{\\])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac *([^\s{\\]) *\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac *\{[^{}]*\}) *([^\s{\\])", r"\1{\2}", text)
    text = text.replace(" ", "")
    return text.replace(",", "") if _GROUPED.fullmatch(text) else text


def _number(text: str) -> Fraction | None:
    found = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}", text)
    try:
        if found:
            return Fraction(int(found[1] + "1") * int(found[2]), int(found[3]))
        return Fraction(text) if re.fullmatch(r"-?(\d+(\.\d*)?|\.\d+|\d+/\d+)", text) else None
    except ZeroDivisionError:
        return None


def equal(these: str, those: str) -> bool:
    """Whether two normalised answers are the same text or the same rational number."""
    if these == those:
        return bool(these)
    a, b = _number(these), _number(those)
    return a is not None and a == b


def parse(record: Mapping[str, Any], where: str) -> Problem:
    """A problem from `problem` and `solution`."""
    problem, solution = texts(record, ("problem", "solution"), where)
    final = boxed(solution)
    if final is None:
        raise UserError(f"{where}: the solution has no \\boxed answer")
    return Problem(identify(where, problem), problem, solution, normalise(final))


def ask(problem: Problem) -> str:
    """The problem's part of the prompt."""
    return f"Problem:\n{problem.question}\n\nSolution:"


def shot(problem: Problem) -> str:
    """A solved problem."""
    return f"{ask(problem)} {problem.answer}"


def score(text: str, problem: Problem) -> dict[str, bool]:
    """Whether the closing sentence and the last box are right; `final` is normalised."""
    # An answer that breaks off after the number still names it, as in the harness.
    said, box = _SENTENCE.search(text + " I hope it is correct"), boxed(text)
    return {
        "sentence": said is not None and equal(normalise(said.group(1)), problem.final),
        "boxed": box is not None and equal(normalise(box), problem.final),
    }


BENCHMARK = Benchmark(
    name="minerva_math",
    parse=parse,
    ask=ask,
    shot=shot,
    stop=("Problem:",),
    score=score,
    measures=("sentence", "boxed"),
    fixed_shots="minerva_math/utils.py",
    fields=("problem", "solution"),
    prompt="shots, then `Problem:`, the problem, blank line, `Solution:`",
    postprocess="cut at `Problem:`",
    scorer="sentence: `Final Answer: The final answer is …`; boxed: the last \\boxed",
)
