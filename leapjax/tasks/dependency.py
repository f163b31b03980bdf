"""Tasks whose answers depend on each other's tokens to a known degree, from a seeded generator.

Every problem is a pure function of (seed, split, task, index). A question belongs to exactly one
split by a stable hash of its text, whatever the seed, so held-out questions can never be met in
training. `docs/tasks.md` says for each task how strongly the tokens of an answer depend on each
other.
"""

import hashlib

import numpy as np

from leapjax.errors import UserError
from leapjax.tasks.base import Problem, distinct
from leapjax.tasks.dependency_kinds import KINDS
from leapjax.tasks.dependency_templates import TEMPLATES, UNSEEN

SPLITS = ("train", "heldout", "tune")
LONG = (113, 250)  # sizes of `copy-long` and `reverse-long`
LONG_CANVAS, SHORT_CANVAS = 256, 32  # in tokens
STRATA = (*KINDS, "copy-long", "reverse-long", *(f"{kind}-short" for kind in KINDS))


def sizes_of(stratum: str) -> tuple[int, int]:
    """Smallest and largest size of a stratum's problems."""
    name, _, which = stratum.partition("-")
    low, high = KINDS[name].sizes
    return LONG if which == "long" else (low, KINDS[name].short if which else high)


def split_of(kind: str, question: str) -> str:
    """Where a question belongs: one in ten is held out, one in ten serves to choose settings."""
    digest = hashlib.blake2b(f"{kind}:{question}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") % 10
    return "heldout" if place == 0 else "tune" if place == 1 else "train"


def draw(rng: np.random.Generator, split: str, stratum: str, limit: int = 0) -> Problem:
    """Draw one problem; its size is drawn log-uniformly, up to `limit` (0: the task's own).

    >>> problem = draw(np.random.default_rng(0), "heldout", "reverse", 8)
    >>> problem.question, problem.answer
    ('OHVRAKWO', 'OWKARVHO')
    """
    for name, value, known in (("split", split, SPLITS), ("stratum", stratum, STRATA)):
        if value not in known:
            raise UserError(f"{name} {value!r} is unknown (known: {', '.join(known)})")
    name = stratum.partition("-")[0]
    kind = KINDS[name]
    low, high = sizes_of(stratum)
    high = max(low, min(high, limit or high))
    while True:
        size = int(low * ((high + 1) / low) ** rng.random())
        question, answer = kind.make(rng, min(size, high))
        if split_of(name, question) == split:
            break
    digest = hashlib.blake2b(question.encode(), digest_size=6).hexdigest()
    metadata = {"kind": name, "size": size}
    return Problem(
        f"{stratum}-{digest}", question, answer, answer, stratum, metadata, TEMPLATES[name]
    )


def sample(rng: np.random.Generator, stratum: str, limit: int = 0) -> tuple[str, Problem]:
    """Draw a training problem and a prompt for it, in one of the wordings that are trained on."""
    problem = draw(rng, "train", stratum, limit)
    trained = [i for i in range(len(problem.templates)) if i not in UNSEEN]
    template = problem.templates[trained[int(rng.integers(len(trained)))]]
    return template.format(question=problem.question), problem


def generate(seed: int, split: str, stratum: str, n: int) -> list[Problem]:
    """Draw n problems, no question twice; a longer list begins with the shorter one."""
    places = [(SPLITS, split), (STRATA, stratum)]
    numbers = [names.index(name) if name in names else 0 for names, name in places]
    rng = np.random.default_rng([seed, *numbers])
    where = f"stratum {stratum!r}, split {split!r}"
    return distinct(lambda: draw(rng, split, stratum), n, where)


def extract(text: str, problem: Problem) -> str | None:
    """A text's answer in the asked form; None where it holds none."""
    return KINDS[problem.metadata["kind"]].read(text)


def score_strict(text: str, problem: Problem) -> bool:
    """Whether a text is, letter for letter, a valid answer in the asked form.

    Spaces and line breaks around the whole text are ignored.
    """
    return KINDS[problem.metadata["kind"]].right(problem.question, text.strip())


def score(text: str, problem: Problem) -> bool:
    """Whether a text's answer is valid, however it is spaced, quoted or introduced."""
    kind = KINDS[problem.metadata["kind"]]
    answer = kind.read(text)
    return answer is not None and kind.right(problem.question, answer)
