"""Grade-school word problems with worked solutions, from a seeded generator.

Every problem is a pure function of (seed, split, stratum, index). A (template, operands)
pair belongs to exactly one split by a stable hash of its text, whatever the seed, so the
held-out problems can never be met in training; one template in ten is kept out of training
altogether and makes up the split `unseen`. The split `tune`, for choosing thresholds, is a tenth
of the pairs by the same hash: disjoint from `heldout` and `unseen`, but a part of `train`.
"""

import dataclasses
import functools
import hashlib
import itertools

import numpy as np

from leapjax.errors import UserError
from leapjax.tasks import wordproblem_templates as wording
from leapjax.tasks.base import Problem, distinct

STRATA = ("drill", "easy", "main", "long", "distractor", "large")
SPLITS = ("train", "heldout", "unseen", "tune")
STEPS = {"drill": (), "easy": (1,), "main": (2, 3), "long": (4,), "distractor": (2,), "large": (2,)}
LIMIT = 20  # largest number in a problem or solution outside "large"
WIDEST = 30  # the largest that any range of the wording can reach


@dataclasses.dataclass(frozen=True)
class Template:
    """A wording with open numbers, names and objects."""

    id: str  # stable, what the split is decided by
    stratum: str  # where it is reported
    source: wording.Setting | wording.Story
    events: tuple[wording.Event, ...] = ()  # the setting's, in their order; empty for a story


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@functools.cache
def templates(stratum: str, unseen: bool) -> tuple[Template, ...]:
    """Every template of a stratum; with `unseen`, those that are kept out of training."""
    if stratum not in STRATA:
        raise UserError(f"stratum {stratum!r} is unknown (known: {', '.join(STRATA)})")
    out = []
    for setting in wording.SETTINGS:
        for steps in STEPS[stratum]:
            for events in itertools.permutations(setting.events, steps):
                # Sums of products leave the small range; one at most, and early.
                if any(e.op == "*" for e in events[1:]):
                    continue
                name = f"{stratum}/{setting.key}:" + "-".join(e.key for e in events)
                out.append(Template(name, stratum, setting, events))
    if stratum == "main":
        out += [Template(f"main/{s.key}", "main", s) for s in wording.STORIES]
    if stratum == "drill":
        return (
            () if unseen else tuple(Template(f"drill/{s.key}", "drill", s) for s in wording.DRILLS)
        )
    # The order of events is hashed without the stratum: a distractor version of an unseen
    # story is unseen too.
    return tuple(t for t in out if (_hash("t:" + t.id.split("/")[1]) % 10 == 0) == unseen)


def _calculate(left: int, op: str, right: int) -> int:
    return left + right if op == "+" else left - right if op == "-" else left * right


def _draw_chain(rng, template: Template, limit: int) -> list[int] | None:
    """Start value and one number an event, or None when a result leaves the range."""
    large = template.stratum == "large"
    limit = 250 if large else limit
    if template.events[0].op == "*":
        total = int(rng.integers(20, 80) if large else rng.integers(2, 10))
    else:
        # One step reaches every number that a longer chain may meet on its way.
        highest = WIDEST if template.stratum == "easy" else 20
        total = int(rng.integers(20, 140) if large else rng.integers(2, highest + 1))
    if total > limit:
        return None
    values = [total]
    for event in template.events:
        if event.op == "*":
            y = int(rng.integers(2, 4 if large else 5))
        else:
            y = int(rng.integers(11, 90) if large else rng.integers(2, 10))
        total = _calculate(total, event.op, y)
        if not 1 <= total <= limit:
            return None
        values.append(y)
    return values


def _draw_story(rng, story: wording.Story, limit: int) -> list[int] | None:
    known = {k: int(rng.integers(lo, hi + 1)) for k, (lo, hi) in story.ranges.items()}
    values = list(known.values())
    if max(values) > limit:
        return None
    for i, (left, op, right, _) in enumerate(story.steps):
        known[f"r{i + 1}"] = _calculate(known[left], op, known[right])
        if not 1 <= known[f"r{i + 1}"] <= limit:
            return None
    return values


def _write(rng, template: Template, values: list[int]) -> Problem:
    source = template.source
    names = [wording.NAMES[i] for i in rng.permutation(len(wording.NAMES))[:3]]
    fill = {"A": names[0], "B": names[1], "o": str(rng.choice(source.objects))}
    lines = []
    if isinstance(source, wording.Story):
        known = dict(zip(source.ranges, values, strict=True))
        question = source.ask.format(**fill, **known)
        for i, (left, op, right, line) in enumerate(source.steps):
            result = _calculate(known[left], op, known[right])
            equation = f"{known[left]} {op} {known[right]} = {result}"
            lines.append(line.format(**fill, **known, eq=equation))
            known[f"r{i + 1}"] = result
    else:
        total = values[0]
        sentences = [source.start.format(x=total, **fill)]
        for event, y in zip(template.events, values[1:], strict=True):
            result = _calculate(total, event.op, y)
            sentences.append(event.ask.format(y=y, **fill))
            lines.append(event.line.format(y=y, eq=f"{total} {event.op} {y} = {result}", **fill))
            total = result
        if template.stratum == "distractor":
            extra = str(rng.choice(wording.DISTRACTORS)).format(
                C=names[2],
                z=int(rng.integers(2, WIDEST + 1)),
                w=str(rng.choice(wording.DISTRACTOR_OBJECTS)),
            )
            sentences.insert(int(rng.integers(1, len(sentences) + 1)), extra)
        question = " ".join([*sentences, source.ask.format(**fill)])
        result = total
    answer = "\n".join([*lines, f"#### {result}"])
    digest = hashlib.blake2b(question.encode(), digest_size=6).hexdigest()
    return Problem(
        id=f"{template.stratum}-{digest}",
        question=question,
        answer=answer,
        final=str(result),
        stratum=template.stratum,
        metadata={"template": template.id, "operands": values},
    )


def splits_of(template: Template, values: list[int]) -> tuple[str, ...]:
    """The splits that a (template, operands) pair of a seen template belongs to."""
    key = "o:" + template.id.split("/")[1] + ":" + ",".join(map(str, values))
    return {0: ("heldout",), 1: ("train", "tune")}.get(_hash(key) % 10, ("train",))


def draw(rng: np.random.Generator, split: str, stratum: str, limit: int = LIMIT) -> Problem:
    """Draw one problem.

    The splits are "train", "heldout" (unseen operands of trained templates), "unseen" (templates
    kept out of training) and "tune" (a part of "train"). `limit` is the largest number, at least 10
    (the stratum "large" has its own).
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown (known: {', '.join(SPLITS)})")
    pool = templates(stratum, split == "unseen")
    if not pool:
        raise UserError(f"stratum {stratum!r} has no templates in split {split!r}")
    while True:
        # Stories are few beside the orders of events; each counts several times.
        template = pool[int(rng.integers(len(pool)))]
        if stratum == "main" and rng.random() < 0.2:
            stories = [t for t in pool if not t.events]
            template = stories[int(rng.integers(len(stories)))] if stories else template
        while True:
            if isinstance(template.source, wording.Story):
                values = _draw_story(rng, template.source, limit)
            else:
                values = _draw_chain(rng, template, limit)
            if values is not None:
                break
        if split == "unseen" or split in splits_of(template, values):
            return _write(rng, template, values)


def generate(seed: int, split: str, stratum: str, n: int) -> list[Problem]:
    """Draw n problems, no question twice; a longer list begins with the shorter one."""
    if n < 0:
        raise UserError(f"n is {n}, expected >= 0")
    rng = np.random.default_rng(
        [
            seed,
            SPLITS.index(split) if split in SPLITS else 0,
            STRATA.index(stratum) if stratum in STRATA else 0,
        ]
    )
    where = f"stratum {stratum!r}, split {split!r}"
    return distinct(lambda: draw(rng, split, stratum), n, where)
