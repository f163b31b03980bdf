"""How strongly the tokens of an answer depend on each other, given the prompt.

    total correlation = sum of H(token) - H(answer), in nats, 0 where the tokens are independent

over valid answers that are equally likely, as the generator draws them. It is the number of nats
that a decoder loses on average when it draws all tokens at once, even from exact marginals.

    leapjax.tasks.dependence.measure("latin", 500)
"""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np

from leapjax.tasks import dependency
from leapjax.tasks.base import Problem
from leapjax.tasks.dependency_kinds import KINDS, completions, queue

Column = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Dependence:
    """The valid answers of a problem as a distribution over its tokens."""

    columns: tuple[Column, ...]  # each token's marginal, over the texts of the tokens
    entropy: float  # of the whole answer, nats: the log of the number of valid answers

    @property
    def total_correlation(self) -> float:
        """Sum of the tokens' entropies minus the answer's, nats."""
        return max(0.0, sum(map(_entropy, self.columns)) - self.entropy)

    def at_once(self, rng: np.random.Generator) -> str:
        """An answer whose tokens are drawn at once, each from its own marginal."""
        return "".join(str(rng.choice([*c], p=[*c.values()])) for c in self.columns)


def _entropy(column: Column) -> float:
    return -sum(p * math.log(p) for p in column.values() if p)


def _uniform(tokens) -> Column:
    counts = Counter(tokens)
    return {token: n / counts.total() for token, n in counts.items()}


def of(problem: Problem) -> Dependence:
    r"""The dependence of a problem's answer tokens.

    >>> two_of_four = Problem("", "2\nABCD", "", "", metadata={"kind": "list"})
    >>> math.isclose(of(two_of_four).total_correlation, math.log(16 / 12))  # 12 of 16 are right
    True
    """
    kind, question = problem.metadata["kind"], problem.question
    if kind == "latin":
        return _of_all(completions(question))
    if kind == "waiting":
        line, leave = queue(question)
        return _of_all(["".join(c) for c in itertools.combinations(line, len(line) - leave)])
    if kind == "list":
        count, pool = question.split("\n")
        n = int(count)
        return Dependence((_uniform(pool),) * n, math.log(math.perm(len(pool), n)))
    if kind == "json":
        pairs = [item.split("=") for item in question.split(",")]
        keys, tens, ones = (
            _uniform(k for k, _ in pairs),
            *(_uniform(value[i] for _, value in pairs) for i in (0, 1)),
        )
        columns = [c for _ in pairs for c in ({',"': 1.0}, keys, {'":': 1.0}, tens, ones)]
        columns[0] = {'{"': 1.0}
        return Dependence((*columns, {"}": 1.0}), math.log(math.factorial(len(pairs))))
    return Dependence(tuple({c: 1.0} for c in problem.answer), 0.0)


def _of_all(answers: list[str]) -> Dependence:
    return Dependence(
        tuple(_uniform(column) for column in zip(*answers, strict=True)), math.log(len(answers))
    )


def measure(stratum: str, n: int, seed: int = 0) -> dict[str, float]:
    """Means over n held-out problems of a stratum.

    `entropy` and `total_correlation` in nats, `tokens` an answer has without its eos, and
    `at_once`, the share of answers that are valid when all their tokens are drawn at once from
    their exact marginals. `seed` is that of the problems and of the draws.
    """
    rng = np.random.default_rng(seed)
    problems = dependency.generate(seed, "heldout", stratum, n)
    found = [of(problem) for problem in problems]
    right = [
        KINDS[p.metadata["kind"]].right(p.question, d.at_once(rng))
        for p, d in zip(problems, found, strict=True)
    ]
    values = {
        "tokens": [len(d.columns) for d in found],
        "entropy": [d.entropy for d in found],
        "total_correlation": [d.total_correlation for d in found],
        "at_once": right,
    }
    return {name: float(np.mean(value)) for name, value in values.items()}
