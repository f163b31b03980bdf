"""IFEval (arXiv 2311.07911): does an answer follow instructions that a program can check.

The checkers are those of the lm-evaluation-harness; without it nothing is scored.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from leapjax.errors import UserError
from leapjax.tasks.base import Problem
from leapjax.tasks.benchmark import Benchmark, texts

MEASURES = ("prompt_level_strict_acc", "prompt_level_loose_acc")


def parse(record: Mapping[str, Any], where: str) -> Problem:
    """A problem from `prompt`, `key`, `instruction_id_list` and `kwargs`."""
    (prompt,) = texts(record, ("prompt",), where)
    names, given = record.get("instruction_id_list"), record.get("kwargs")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"{where}: expected a list of texts under instruction_id_list")
    if not isinstance(given, list) or not all(isinstance(k, dict) for k in given):
        raise UserError(f"{where}: expected a list of objects under kwargs")
    if len(names) != len(given):
        raise UserError(f"{where}: {len(names)} instructions but {len(given)} kwargs")
    key = record.get("key")
    if not isinstance(key, int):
        raise UserError(f"{where}: expected a whole number under key")
    kept = {"key": key, "instruction_id_list": names, "kwargs": given, "prompt": prompt}
    return Problem(str(key), prompt, "", "", metadata=kept)


@functools.cache
def checker() -> Callable[[Mapping[str, Any], list[str]], dict[str, Any]]:
    """The harness's function from a record and an answer to measures."""
    try:
        return importlib.import_module("lm_eval.tasks.ifeval.utils").process_results
    except (ImportError, LookupError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(
            f"ifeval is scored by lm-eval's checkers, which can't be imported ({reason}); "
            "install them with pip install 'lm-eval[ifeval]'"
        ) from e


def score(text: str, problem: Problem) -> dict[str, bool]:
    """Whether all of a prompt's instructions are followed, strictly and loosely."""
    found = checker()(problem.metadata, [text])
    return {name: bool(found[name]) for name in MEASURES}


BENCHMARK = Benchmark(
    name="ifeval",
    parse=parse,
    ask=lambda problem: problem.question,
    score=score,
    measures=MEASURES,
    fields=("key", "prompt", "instruction_id_list", "kwargs"),
    prompt="the record's prompt as it is",
    postprocess="none",
    scorer="lm-eval's checkers: every instruction of a prompt followed",
)
