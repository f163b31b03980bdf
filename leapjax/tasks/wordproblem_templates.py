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
"""

from __future__ import annotations

import dataclasses

NAMES = (
    "Tom Anna Ben Mia Sam Lily Max Emma Leo Nora Jack Ella Finn Rosa Adam Lucy Omar Ivy Paul "
    "Zoe Hugo Clara Noah Ruth Eric Maya Alan Dora Karl Vera"
).split()


@dataclasses.dataclass(frozen=True)
class Event:
    """One step on the running total.

    Attributes:
      key: name inside its setting.
      op: "+", "-" or "*".
      ask: the sentence in the problem.
      line: the line in the solution.
    """

    key: str
    op: str
    ask: str
    line: str


@dataclasses.dataclass(frozen=True)
class Setting:
    """A start, the events that may follow, and the question.

    Attributes:
      key: first part of the template's id.
      objects: what is counted.
      start: the first sentence, with {x}.
      events: what may happen, in any order, each at most once.
      ask: the question.
    """

    key: str
    objects: tuple[str, ...]
    start: str
    events: tuple[Event, ...]
    ask: str


@dataclasses.dataclass(frozen=True)
class Story:
    """A fixed problem whose steps name earlier results.

    Attributes:
      key: the template's id.
      objects: what is counted.
      ask: the problem, with {a}, {b}, {c}, {d} as its numbers.
      steps: (left, op, right, line); left and right are a number's letter or r1, r2, …
      ranges: letter -> (lowest, highest), both included.
    """

    key: str
    objects: tuple[str, ...]
    ask: str
    steps: tuple[tuple[str, str, str, str], ...]
    ranges: dict[str, tuple[int, int]]


def _objects(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SETTINGS = (
    Setting(
        "collect",
        _objects("marbles shells stickers coins cards stamps buttons stones"),
        "{A} has {x} {o}.",
        (
            Event("find", "+", "{A} finds {y} more.", "With {y} more that makes {eq} {o}."),
            Event("gift", "+", "{B} gives {A} {y} more.", "With the gift that makes {eq} {o}."),
            Event("lose", "-", "{A} loses {y}.", "Without the {y} that leaves {eq} {o}."),
            Event("give", "-", "{A} gives {B} {y}.", "After giving {y} there are {eq} {o}."),
            Event(
                "trade",
                "*",
                "A trade makes it {y} times as many.",
                "The trade then makes that {eq} {o}.",
            ),
        ),
        "How many {o} does {A} have now?",
    ),
    Setting(
        "kitchen",
        _objects("cookies muffins rolls pies cakes tarts"),
        "{A} bakes {x} {o}.",
        (
            Event("bake", "+", "{A} bakes {y} more.", "Baking {y} more then gives {eq} {o}."),
            Event("bring", "+", "{B} brings {y}.", "With the {y} there are {eq} {o}."),
            Event("eat", "-", "{B} eats {y}.", "Without the {y} there are {eq} {o}."),
            Event("burn", "-", "The oven burns {y}.", "Without burnt ones there are {eq} {o}."),
            Event(
                "recipe",
                "*",
                "Then {A} makes it {y} times as many.",
                "Making it {y} times gives {eq} {o}.",
            ),
        ),
        "How many {o} are there in the end?",
    ),
    Setting(
        "bus",
        _objects("people children guests girls boys players"),
        "A bus has {x} {o} on board.",
        (
            Event(
                "school",
                "+",
                "At the school {y} get on.",
                "After the school there are {eq} {o}.",
            ),
            Event(
                "park",
                "-",
                "At the park {y} get off.",
                "After the park there are {eq} {o}.",
            ),
            Event(
                "market",
                "+",
                "At the market {y} get on.",
                "After the market there are {eq} {o}.",
            ),
            Event(
                "station",
                "-",
                "At the station {y} get off.",
                "After the station there are {eq} {o}.",
            ),
        ),
        "How many {o} are on the bus now?",
    ),
    Setting(
        "garden",
        _objects("flowers roses tulips bushes trees beans"),
        "A garden has {x} {o}.",
        (
            Event("plant", "+", "{A} plants {y}.", "With {y} more it has {eq} {o}."),
            Event("grow", "+", "Then {y} new ones grow.", "The new ones make it {eq} {o}."),
            Event("cut", "-", "{A} cuts {y}.", "Without {y} the garden has {eq} {o}."),
            Event("storm", "-", "A storm takes {y}.", "After the storm there are {eq} {o}."),
            Event(
                "year",
                "*",
                "A year later there are {y} times as many.",
                "A year later there are {eq} {o}.",
            ),
        ),
        "How many {o} does the garden have now?",
    ),
    Setting(
        "library",
        _objects("books maps games films magazines"),
        "A library has {x} {o}.",
        (
            Event("buy", "+", "It buys {y}.", "It buys {y} and has {eq} {o}."),
            Event("return", "+", "{A} returns {y}.", "With the {y} there are {eq} {o}."),
            Event("lend", "-", "It lends {y} to {A}.", "It lends {y} and keeps {eq} {o}."),
            Event("sell", "-", "It sells {y}.", "It sells {y} and has {eq} {o}."),
        ),
        "How many {o} does the library have now?",
    ),
    Setting(
        "savings",
        _objects("dollars euros pounds"),
        "{A} saved {x} {o}.",
        (
            Event("earn", "+", "{A} earns {y}.", "Earning {y} more makes it {eq} {o}."),
            Event("aunt", "+", "An aunt sends {y}.", "With the money there are {eq} {o}."),
            Event(
                "spend", "-", "{A} spends {y} on a book.", "After the book that leaves {eq} {o}."
            ),
            Event("pay", "-", "{A} pays {B} {y}.", "Paying the {y} then leaves {eq} {o}."),
            Event(
                "grow",
                "*",
                "A prize makes it {y} times as much.",
                "The prize then makes it {eq} {o}.",
            ),
        ),
        "How many {o} does {A} have now?",
    ),
    Setting(
        "farm",
        _objects("eggs apples pears melons plums pumpkins"),
        "{A} picks {x} {o} on a farm.",
        (
            Event("pick", "+", "{B} picks {y} more.", "With {y} more there are {eq} {o}."),
            Event("shed", "+", "The shed holds {y} more.", "With the shed there are {eq} {o}."),
            Event("rot", "-", "Then {y} go bad.", "Without bad ones there are {eq} {o}."),
            Event("sell", "-", "They sell {y}.", "After they sell there are {eq} {o}."),
        ),
        "How many {o} do they have in the end?",
    ),
    Setting(
        "train",
        _objects("boxes crates barrels bags parcels"),
        "A truck carries {x} {o}.",
        (
            Event("load", "+", "{A} loads {y}.", "With {y} more it carries {eq} {o}."),
            Event("dock", "+", "The dock adds {y}.", "The dock adds {y} making {eq} {o}."),
            Event("drop", "-", "It drops {y} at a shop.", "After the shop it carries {eq} {o}."),
            Event("mill", "-", "It leaves {y} at a mill.", "After the mill it carries {eq} {o}."),
            Event("trips", "*", "It makes {y} such trips.", "Over {y} trips it carries {eq} {o}."),
        ),
        "How many {o} does the truck carry in the end?",
    ),
)

_FOOD = _objects("cookies apples pears plums eggs muffins melons")
_TOYS = _objects("marbles shells stickers coins cards stamps buttons")

STORIES = (
    Story(
        "packs-two",
        _TOYS + _FOOD,
        "{A} buys {a} bags with {b} {o} each and {c} boxes with {d} {o} each. "
        "How many {o} does {A} buy?",
        (
            ("a", "*", "b", "Then all the bags hold {eq} {o}."),
            ("c", "*", "d", "Then all the boxes hold {eq} {o}."),
            ("r1", "+", "r2", "Together all that then makes {eq} {o}."),
        ),
        {"a": (2, 4), "b": (2, 5), "c": (2, 4), "d": (2, 5)},
    ),
    Story(
        "packs-extra",
        _TOYS + _FOOD,
        "{A} has {a} bags with {b} {o} each and {c} single {o}. How many {o} does {A} have?",
        (
            ("a", "*", "b", "Then the {a} bags hold {eq} {o}."),
            ("r1", "+", "c", "With single ones there are {eq} {o}."),
        ),
        {"a": (2, 5), "b": (2, 9), "c": (2, 9)},
    ),
    Story(
        "packs-gone",
        _TOYS + _FOOD,
        "{A} has {a} boxes with {b} {o} each. {B} takes {c} {o}. How many {o} are left?",
        (
            ("a", "*", "b", "Then the {a} boxes hold {eq} {o}."),
            ("r1", "-", "c", "Without the {c} that leaves {eq} {o}."),
        ),
        {"a": (2, 5), "b": (2, 9), "c": (2, 9)},
    ),
    Story(
        "compare-more",
        _TOYS,
        "{A} has {a} {o}. {B} has {b} more than {A}. How many {o} do they have together?",
        (
            ("a", "+", "b", "With {b} more there are {eq} {o}."),
            ("a", "+", "r1", "Together all that then makes {eq} {o}."),
        ),
        {"a": (2, 10), "b": (2, 9)},
    ),
    Story(
        "compare-fewer",
        _TOYS,
        "{A} has {a} {o}. {B} has {b} fewer than {A}. How many {o} do they have together?",
        (
            ("a", "-", "b", "With {b} fewer there are {eq} {o}."),
            ("a", "+", "r1", "Together all that then makes {eq} {o}."),
        ),
        {"a": (3, 16), "b": (2, 9)},
    ),
    Story(
        "compare-times",
        _TOYS,
        "{A} has {a} {o}. {B} has {b} times as many as {A} but then loses {c}. "
        "How many {o} does {B} have now?",
        (
            ("a", "*", "b", "Making it {b} times gives {eq} {o}."),
            ("r1", "-", "c", "Without the {c} that leaves {eq} {o}."),
        ),
        {"a": (2, 9), "b": (2, 4), "c": (2, 9)},
    ),
    Story(
        "tickets",
        _objects("tickets pens cups hats toys"),
        "{A} has {a} dollars and buys {b} {o} for {c} dollars each. How many dollars are left?",
        (
            ("b", "*", "c", "Then all the {o} cost {eq} dollars."),
            ("a", "-", "r1", "After the {o} that leaves {eq} dollars."),
        ),
        {"a": (8, 30), "b": (2, 5), "c": (2, 6)},
    ),
    Story(
        "week",
        _objects("pages songs letters poems"),
        "{A} reads {a} {o} on Monday, {b} more on Tuesday than on Monday and {c} on Friday. "
        "How many {o} is that in all?",
        (
            ("a", "+", "b", "On Tuesday that then makes {eq} {o}."),
            ("a", "+", "r1", "With Monday that then makes {eq} {o}."),
            ("r2", "+", "c", "With Friday that then makes {eq} {o}."),
        ),
        {"a": (2, 8), "b": (2, 6), "c": (2, 9)},
    ),
    Story(
        "teams",
        _objects("players children people"),
        "There are {a} teams with {b} {o} each. Then {c} {o} join and {d} go home. "
        "How many {o} are there now?",
        (
            ("a", "*", "b", "Then the {a} teams have {eq} {o}."),
            ("r1", "+", "c", "When {c} join there are {eq} {o}."),
            ("r2", "-", "d", "When {d} go there are {eq} {o}."),
        ),
        {"a": (2, 5), "b": (2, 8), "c": (2, 9), "d": (2, 9)},
    ),
    Story(
        "shelves",
        _objects("books maps games films"),
        "{A} fills {a} shelves with {b} {o} each. Of {c} more {o}, {A} sells {d} and keeps the "
        "rest. How many {o} does {A} have?",
        (
            ("a", "*", "b", "Then all the shelves hold {eq} {o}."),
            ("c", "-", "d", "Of the others that leaves {eq} {o}."),
            ("r1", "+", "r2", "Together all that then makes {eq} {o}."),
        ),
        {"a": (2, 4), "b": (2, 6), "c": (4, 14), "d": (2, 9)},
    ),
)

DISTRACTORS = (
    "{C} has {z} {w}.",
    "{C} is {z} years old.",
    "It is {z} miles to the town.",
    "There are {z} {w} on the table.",
)
DISTRACTOR_OBJECTS = _objects("chairs cats dogs lamps kites drums birds")


def _drill(key: str, op: str, left: tuple[int, int], right: tuple[int, int]) -> Story:
    return Story(
        key,
        ("things",),
        f"How many is {{a}} {op} {{b}}?",
        (("a", op, "b", "That makes {eq}."),),
        {"a": left, "b": right},
    )


# Bare sums, differences and products: the number facts of the stories, many to a batch.
DRILLS = (
    _drill("plus", "+", (2, 28), (2, 9)),
    _drill("plus-wide", "+", (2, 20), (2, 20)),
    _drill("minus", "-", (3, 30), (2, 9)),
    _drill("minus-wide", "-", (4, 30), (2, 20)),
    _drill("times", "*", (2, 5), (2, 10)),
    _drill("times-turned", "*", (2, 10), (2, 5)),
)
