"""Tasks by name: where problems come from, what the model is asked, who is right.

task = tasks.get("wordproblems")            # or "gsm8k:test.jsonl"
for problem in task.problems("heldout", strata=(), limit=100, seed=0): ...
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leapjax.errors import UserError
from leapjax.tasks.base import (
    TEMPLATES,
    UNSEEN_TEMPLATES,
    Problem,
    extract_final,
    score,
    score_strict,
)

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

DEPENDENCY = (
    *("dependency", "copy", "reverse", "sort", "replace", "latin", "waiting", "sums", "list"),
    *("json", "copy-long", "reverse-long", "dependency-short", "copy-short", "reverse-short"),
    *("sort-short", "replace-short", "latin-short", "waiting-short", "sums-short", "list-short"),
    "json-short",
)
NAMES = ("wordproblems", *DEPENDENCY, "gsm8k:PATH")

__all__ = [
    "DEPENDENCY",
    "NAMES",
    "Problem",
    "Task",
    "extract_final",
    "get",
    "score",
    "score_strict",
]


@dataclasses.dataclass(frozen=True)
class Task:
    """The problems, the prompt and the scorer of a task.

    `draw` takes (split, strata, limit, seed), which `problems` has checked. A task for training has
    `sample`, `(rng, stratum, limit) -> (prompt, problem)`, which draws from the split "train"
    (limit 0: the task's own), and `tokenizer`, for models trained from scratch.
    """

    name: str
    splits: tuple[str, ...]  # the default first
    strata: tuple[str, ...]  # groups of problems that are drawn by default
    gen_length: int  # at most 1.5 times the 99th percentile of the answers' tokens
    block_length: int  # in tokens
    draw: Callable[[str, tuple[str, ...], int | None, int], list[Problem]]
    score: Callable[[str, Problem], bool] = score  # by the lenient parser
    score_strict: Callable[[str, Problem], bool] = score_strict  # accepts the asked form only
    extract: Callable[[str], Hashable | None] = extract_final  # None: a text has no final answer
    templates: tuple[str, ...] = TEMPLATES  # with `{question}`; the first is the plain one
    unseen_templates: tuple[int, ...] = UNSEEN_TEMPLATES  # indices that no training uses
    sample: Callable[[np.random.Generator, str, int], tuple[str, Problem]] | None = None
    tokenizer: Callable[[], Tokenizer] | None = None

    def problems(
        self,
        split: str | None = None,
        strata: Sequence[str] = (),
        limit: int | None = None,
        seed: int = 0,
    ) -> list[Problem]:
        """The problems to solve; the same arguments give the same problems.

        `split` defaults to the first of `splits`, `strata` to all of the task's, in equal
        numbers. `limit` is the total number of problems (None: the task's own number).
        """
        split = split or self.splits[0]
        if split not in self.splits:
            raise UserError(
                f"split {split!r} is unknown to task {self.name} (known: {', '.join(self.splits)})"
            )
        if limit is not None and limit < 1:
            raise UserError(f"limit is {limit}; expected at least 1")
        return self.draw(split, tuple(strata) or self.strata, limit, seed)

    def record(self, problem: Problem, template: int = 0) -> dict[str, Any]:
        r"""The prompt for the model, as a record of a JSONL file.

        `template` is an index into `templates`; the record's id does not depend on it.

        >>> problem = Problem("a", "2 + 2?", "#### 4", "4")
        >>> get("wordproblems").record(problem, 4)
        {'id': 'a', 'prompt': 'Q: 2 + 2?\nA:'}
        """
        templates = problem.templates or self.templates
        if not 0 <= template < len(templates):
            last = len(templates) - 1
            raise UserError(
                f"template {template} is unknown to task {self.name} (known: 0 to {last})"
            )
        prompt = templates[template].format(question=problem.question)
        return {"id": problem.id, "prompt": prompt}


def get(name: str) -> Task:
    """The task with this name.

    `wordproblems`; one of the tasks with dependency, such as `copy`, or `dependency` for all of
    them; with the suffix `-short`, a canvas of 32 tokens; `copy-long` or `reverse-long`, one of
    256; or `gsm8k:PATH`, a JSONL file of `question` and `answer`.
    """
    kind, _, path = name.partition(":")
    if kind == "wordproblems" and not path:
        from leapjax.tasks import wordproblem_tokenizer, wordproblems

        # The 99th percentile of held-out answers is 63 tokens over the strata, 48 in "main".
        return Task(
            name=name,
            splits=("heldout", "unseen", "tune"),
            strata=("easy", "main", "long", "distractor", "large"),
            gen_length=64,
            block_length=32,
            draw=functools.partial(_generate, wordproblems.generate),
            sample=_sample_word_problem,
            tokenizer=wordproblem_tokenizer.build,
        )
    if kind in DEPENDENCY and not path:
        return _dependency(kind)
    if kind == "gsm8k" and path:
        return Task(
            name=name,
            splits=("test",),
            strata=("all",),
            gen_length=256,
            block_length=32,
            draw=lambda split, strata, limit, seed: _gsm8k(path, limit),
        )
    raise UserError(f"task {name!r} is unknown; choose one of {', '.join(NAMES)}")


def _dependency(name: str) -> Task:
    """A task with dependency, or all of them."""
    from leapjax.tasks import dependency, dependency_tokenizer

    which, _, size = name.partition("-")
    names = tuple(dependency.KINDS) if which == "dependency" else (which,)
    strata = tuple(f"{n}-{size}" if size else n for n in names)
    kinds = [dependency.KINDS[n] for n in names]
    canvases = {"long": dependency.LONG_CANVAS, "short": dependency.SHORT_CANVAS}
    return Task(
        name=name,
        splits=("heldout", "tune"),
        strata=strata,
        gen_length=canvases.get(size) or max(kind.gen_length for kind in kinds),
        block_length=32,
        draw=functools.partial(_generate, dependency.generate),
        score=dependency.score,
        score_strict=dependency.score_strict,
        extract=kinds[0].read if len(kinds) == 1 else str.strip,
        templates=dependency.TEMPLATES[names[0]],
        unseen_templates=dependency.UNSEEN,
        sample=dependency.sample,
        tokenizer=dependency_tokenizer.build,
    )


def _sample_word_problem(rng: np.random.Generator, stratum: str, limit: int) -> tuple[str, Problem]:
    from leapjax.tasks import wordproblems

    problem = wordproblems.draw(rng, "train", stratum, limit or wordproblems.LIMIT)
    return problem.question, problem


def _generate(
    generate: Callable[[int, str, str, int], list[Problem]],
    split: str,
    strata: tuple[str, ...],
    limit: int | None,
    seed: int,
) -> list[Problem]:
    """Problems of a generator, in equal parts of the strata."""
    limit = 500 if limit is None else limit
    whole, rest = divmod(limit, len(strata))
    counts = {s: whole + (i < rest) for i, s in enumerate(dict.fromkeys(strata))}
    return [p for s, n in counts.items() for p in generate(seed, split, s, n)]


def _gsm8k(path: str, limit: int | None) -> list[Problem]:
    """Problems of a JSONL file in GSM8K's form, in the file's order."""
    from leapjax.tasks.benchmark import identify, read, texts

    def parse(record: Mapping[str, Any], where: str) -> Problem:
        question, answer = texts(record, ("question", "answer"), where)
        final = extract_final(answer)
        if final is None:
            raise UserError(f"{where}: the answer has no final `#### number`")
        return Problem(identify(where, question), question, answer, final)

    return read(path, parse, limit)
