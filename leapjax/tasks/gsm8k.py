"""GSM8K as the lm-evaluation-harness asks and scores it (its task `gsm8k`, version 3.0)."""

import re
from collections.abc import Mapping
from typing import Any

from leapjax.errors import UserError
from leapjax.tasks.base import Problem
from leapjax.tasks.benchmark import Benchmark, identify, texts

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def parse(record: Mapping[str, Any], where: str) -> Problem:
    """A problem from `question` and `answer`."""
    question, answer = texts(record, ("question", "answer"), where)
    if "#### " not in answer:
        raise UserError(f"{where}: the answer has no final `#### number`")
    return Problem(identify(where, question), question, answer, clean(answer.split("#### ")[-1]))


def ask(problem: Problem) -> str:
    """The question's part of the prompt."""
    return f"Question: {problem.question}\nAnswer:"


def shot(problem: Problem) -> str:
    """A solved problem."""
    return f"{ask(problem)} {problem.answer}"


def clean(number: str) -> str:
    """A number's text without what the harness's comparison ignores."""
    return number.strip().replace(",", "").replace("$", "").removesuffix(".").lower()


def score(text: str, problem: Problem) -> dict[str, bool]:
    """The harness's filters: `flexible` reads a text's last number, `strict` that after `#### `."""
    strict, numbers = _STRICT.search(text), _NUMBER.findall(text)
    return {
        "flexible": bool(numbers) and clean(numbers[-1]) == problem.final,
        "strict": strict is not None and clean(strict.group(1)) == problem.final,
    }


BENCHMARK = Benchmark(
    name="gsm8k",
    parse=parse,
    ask=ask,
    shot=shot,
    stop=("Question:", "</s>", "<|im_end|>"),
    score=score,
    measures=("flexible", "strict"),
    random_shots=True,
    fields=("question", "answer"),
    prompt="shots, then `Question: …`, newline, `Answer:`",
    postprocess="cut at `Question:`",
    scorer="flexible: the last number; strict: the number behind `#### `",
)
