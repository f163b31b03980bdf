"""HumanEval (arXiv 2107.03374), post-processed as Fast-dLLM and LocalLeap do.

The prompt is the record's own. Of the answer, the first fenced Python block is taken (all
of it without a fence), put behind the prompt, and cleaned (`leapjax.tasks.code`).
The papers' script looks for the fence in prompt and answer together; the prompts hold
none, so that only answers without a fence can differ.
"""

from collections.abc import Mapping
from typing import Any

from leapjax.tasks.base import Problem
from leapjax.tasks.benchmark import Benchmark, texts
from leapjax.tasks.code import sanitise

FIELDS = ("task_id", "prompt", "test", "entry_point")
_FENCE = "```"


def parse(record: Mapping[str, Any], where: str) -> Problem:
    """A problem from `task_id`, `prompt`, `test` and `entry_point`."""
    task_id, prompt, test, entry_point = texts(record, FIELDS, where)
    kept = {"test": test, "entry_point": entry_point}
    return Problem(task_id, prompt, str(record.get("canonical_solution", "")), "", metadata=kept)


def solution(text: str, problem: Problem) -> str:
    """The code that an answer stands for."""
    block = text.split(_FENCE + "python\n", 1)[-1].split(_FENCE)[0]
    return sanitise(problem.question + "\n" + block, problem.metadata["entry_point"])


def program(text: str, problem: Problem) -> str:
    """The solution, then the test and its call."""
    kept = problem.metadata
    return f"{solution(text, problem)}\n{kept['test']}\ncheck({kept['entry_point']})\n"


BENCHMARK = Benchmark(
    name="humaneval",
    parse=parse,
    ask=lambda problem: problem.question,
    measures=("pass@1",),
    program=program,
    fields=FIELDS,
    prompt="the record's prompt as it is",
    postprocess="not cut; first ```python block behind the prompt; what the function needs of it",
    scorer="the code runs and passes `check(entry_point)`",
)
