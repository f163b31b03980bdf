"""MBPP as the lm-evaluation-harness asks and scores it (its task `mbpp`, version 1.0)."""

from collections.abc import Mapping
from typing import Any

from leapjax.errors import UserError
from leapjax.tasks.base import Problem
from leapjax.tasks.benchmark import Benchmark, texts


def parse(record: Mapping[str, Any], where: str) -> Problem:
    """A problem from `task_id`, `text`, `code` and `test_list`."""
    text, code = texts(record, ("text", "code"), where)
    tests = record.get("test_list")
    if not isinstance(tests, list) or len(tests) < 3 or not all(isinstance(t, str) for t in tests):
        raise UserError(f"{where}: expected at least three texts under test_list")
    if "task_id" not in record:
        raise UserError(f"{where}: expected a number under task_id")
    return Problem(str(record["task_id"]), text, code, "", metadata={"tests": tests[:3]})


def ask(problem: Problem) -> str:
    """The task's part of the prompt, with its three tests."""
    tests = "\n".join(problem.metadata["tests"])
    return (
        f"You are an expert Python programmer, and here is your task: {problem.question} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def shot(problem: Problem) -> str:
    """A solved task."""
    return f"{ask(problem)}{problem.answer}\n[DONE]"


def program(text: str, problem: Problem) -> str:
    """The answer as it is, then the tests."""
    return text + "\n" + "\n".join(problem.metadata["tests"]) + "\n"


BENCHMARK = Benchmark(
    name="mbpp",
    parse=parse,
    ask=ask,
    shot=shot,
    stop=("[DONE]",),
    measures=("pass@1",),
    program=program,
    fixed_shots="mbpp/utils.py",
    fields=("task_id", "text", "code", "test_list"),
    prompt="shots, then task, three tests, `[BEGIN]`",
    postprocess="cut at `[DONE]`",
    scorer="the answer runs and passes its three tests",
)
