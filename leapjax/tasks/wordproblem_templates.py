"""The wording of the word problems: settings, events and fixed stories.

A *setting* is a start sentence, a set of events and a question. Each event has an
operation on the running total, a sentence for the problem and a line for the worked
solution. A template is a setting with an ordered choice of its events, so every order
of every choice is a template of its own; `STORIES` adds fixed ones whose steps do not
form a simple chain. Slots: {A} and {B} are names, {o} is an object in the plural, {x}
the start value, {y} the event's own number, {eq} the step's equation.

The wording of a solution is determined by its problem, and every line of it has the same number
of tokens as long as numbers have two digits (five words, the equation, the object, a stop and the
end of the line): neither words nor places have to be guessed, so a decoder may fill in everything
but the arithmetic at once.

The order in `data/wordproblem-templates.json` has a meaning: problems are drawn by place.
"""

import dataclasses
import json
from importlib.resources import files
from typing import Any


@dataclasses.dataclass(frozen=True)
class Event:
    """One step on the running total."""

    key: str  # name inside its setting
    op: str  # "+", "-" or "*"
    ask: str  # the sentence in the problem
    line: str  # the line in the solution


@dataclasses.dataclass(frozen=True)
class Setting:
    """A start, the events that may follow, and the question."""

    key: str  # first part of the template's id
    objects: tuple[str, ...]  # what is counted
    start: str  # the first sentence, with {x}
    events: tuple[Event, ...]  # what may happen, in any order, each at most once
    ask: str


@dataclasses.dataclass(frozen=True)
class Story:
    """A fixed problem whose steps name earlier results."""

    key: str  # the template's id
    objects: tuple[str, ...]  # what is counted
    ask: str  # the problem, with {a}, {b}, {c}, {d} as its numbers
    # (left, op, right, line); left and right are a number's letter or r1, r2, …
    steps: tuple[tuple[str, str, str, str], ...]
    ranges: dict[str, tuple[int, int]]  # letter -> (lowest, highest), both included


def _setting(key: str, objects: list[str], start: str, events: list, ask: str) -> Setting:
    return Setting(key, tuple(objects), start, tuple(Event(*e) for e in events), ask)


def _story(key: str, objects: list[str], ask: str, steps: list, ranges: dict[str, Any]) -> Story:
    limits = {letter: (low, high) for letter, (low, high) in ranges.items()}
    return Story(key, tuple(objects), ask, tuple(tuple(step) for step in steps), limits)


_DATA = json.loads((files("leapjax") / "data" / "wordproblem-templates.json").read_text("utf-8"))
NAMES: list[str] = _DATA["names"]
SETTINGS = tuple(_setting(**setting) for setting in _DATA["settings"])
STORIES = tuple(_story(**story) for story in _DATA["stories"])
# Bare sums, differences and products: the number facts of the stories, many to a batch.
DRILLS = tuple(_story(**story) for story in _DATA["drills"])
DISTRACTORS = tuple(_DATA["distractors"])
DISTRACTOR_OBJECTS = tuple(_DATA["distractor_objects"])
