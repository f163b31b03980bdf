"""The nine tasks with dependency: how a problem is made, and which answers are right.

A kind makes (question, answer) pairs of a size; `right` judges an answer from the question alone,
so that any valid answer counts; `read` brings a text loosely written to the asked form.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable

import numpy as np

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KEYS = (
    "apple pear plum fig lime kiwi melon grape peach lemon mango olive bean corn rice oat leek "
    "onion carrot tomato salt sugar honey milk butter cheese bread cake soup tea coffee juice egg "
    "fish meat nut mint basil garlic pepper"
).split()


@dataclasses.dataclass(frozen=True)
class Kind:
    """One task of the family."""

    sizes: tuple[int, int]  # smallest and largest size of a problem
    short: int  # largest size whose answers fit a canvas of 32 tokens with ease
    make: Callable[[np.random.Generator, int], tuple[str, str]]  # (rng, size) -> (question, answer)
    right: Callable[[str, str], bool]  # (question, answer in the asked form) -> is it a valid one
    read: Callable[[str], str | None]  # a text to the asked form; None where it holds no answer
    gen_length: int  # canvas for answers of every size and an eos, in tokens
    open: bool = False  # a question may have several valid answers, drawn uniformly in training


def _last(text: str) -> str:
    """The last line of a text, from behind its last colon or equals sign."""
    lines = text.strip().splitlines() or [""]
    return re.split("[:=]", lines[-1])[-1]


def _read_letters(text: str) -> str | None:
    return re.sub(r"[\s,.;\"'\[\]()-]", "", _last(text)).upper() or None


def _read_number(text: str) -> str | None:
    digits = re.sub(r"[\s,.]", "", _last(text))
    return (digits.lstrip("0") or "0") if digits.isdecimal() else None


def _read_square(text: str) -> str | None:
    digits = re.sub(r"[^0-9]", "", text)
    return "\n".join(digits[i : i + 4] for i in range(0, 16, 4)) if len(digits) == 16 else None


def _pairs(text: str) -> dict[str, str] | None:
    """The object of a text as texts; None where it is no JSON object or repeats a key."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        items = json.loads(found.group(), object_pairs_hook=list) if found else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list) or not all(isinstance(i, tuple) for i in items):
        return None
    pairs = {str(k): str(v) for k, v in items}
    return pairs if len(pairs) == len(items) else None


def _write_pairs(pairs: dict[str, str]) -> str:
    return "{" + ",".join(f'"{k}":{v}' for k, v in pairs.items()) + "}"


def _read_json(text: str) -> str | None:
    pairs = _pairs(text)
    return None if pairs is None else _write_pairs({k.lower(): v for k, v in pairs.items()})


def _letters(rng: np.random.Generator, size: int, different: bool = False) -> str:
    chosen = rng.permutation(26)[:size] if different else rng.integers(0, 26, size)
    return "".join(LETTERS[i] for i in chosen)


def _function(solve: Callable[[str], str], make: Callable, read: Callable) -> dict:
    """A task whose question has one answer."""

    def pair(rng, size):
        question = make(rng, size)
        return question, solve(question)

    return {"make": pair, "right": lambda question, text: text == solve(question), "read": read}


def _rule(rng: np.random.Generator, size: int) -> str:
    old, new, *others = _letters(rng, 8, different=True)
    # A quarter of the line is the letter that is replaced; the new letter may be there already.
    line = [old if rng.random() < 0.25 else str(rng.choice([new, *others])) for _ in range(size)]
    return f"{old}={new}\n" + "".join(line)


def _replace(question: str) -> str:
    rule, line = question.split("\n")
    return line.replace(rule[0], rule[2])


def _sum(rng: np.random.Generator, size: int) -> str:
    a, b = ("".join(map(str, [rng.integers(1, 10), *rng.integers(0, 10, size - 1)])) for _ in "ab")
    return f"{a}+{b}"


@functools.cache
def squares() -> tuple[str, ...]:
    """The 576 Latin squares of order 4, as texts of four lines."""
    rows = ["".join(p) for p in itertools.permutations("1234")]
    found: list[tuple[str, ...]] = [()]
    for _ in range(4):
        found = [
            (*done, row)
            for done in found
            for row in rows
            if all(a != b for other in done for a, b in zip(other, row, strict=True))
        ]
    return tuple("\n".join(square) for square in found)


def _latin(rng: np.random.Generator, size: int) -> tuple[str, str]:
    answer = squares()[int(rng.integers(576))]
    cells = list(answer)
    places = [i for i, c in enumerate(cells) if c != "\n"]
    for i in rng.permutation(16)[:size]:
        cells[places[i]] = "."
    return "".join(cells), answer


def completions(question: str) -> list[str]:
    """Every Latin square that has a question's cells."""
    known = [(i, c) for i, c in enumerate(question) if c != "."]
    return [s for s in squares() if all(s[i] == c for i, c in known)]


def _waiting(rng: np.random.Generator, size: int) -> tuple[str, str]:
    everybody = list(_letters(rng, 26, different=True))
    line, outside = everybody[:size], everybody[size:]
    lines = ["".join(line)]
    for _ in range(int(rng.integers(1, 5))):
        what = int(rng.integers(3))
        if what == 0 and len(line) > 3:
            gone = line.pop(int(rng.integers(len(line))))
            lines.append(f"{gone} leaves")
        elif what == 1:
            place = int(rng.integers(len(line)))
            new = outside.pop()
            lines.append(f"{new} joins behind {line[place]}")
            line.insert(place + 1, new)
        else:
            line.append(outside.pop())
            lines.append(f"{line[-1]} joins")
    leave = int(rng.integers(0, 3))
    lines += ["someone leaves"] * leave
    for _ in range(leave):
        line.pop(int(rng.integers(len(line))))
    return "\n".join(lines), "".join(line)


def queue(question: str) -> tuple[str, int]:
    """The line of a waiting question after the named events, and how many more leave."""
    first, *events = question.split("\n")
    line, leave = list(first), 0
    for event in events:
        who, does, *behind = event.split()
        if who == "someone":
            leave += 1
        elif does == "leaves":
            line.remove(who)
        else:
            line.insert(line.index(behind[1]) + 1 if behind else len(line), who)
    return "".join(line), leave


def _right_queue(question: str, text: str) -> bool:
    line, leave = queue(question)
    if len(text) != len(line) - leave:
        return False
    rest = iter(line)
    return all(who in rest for who in text)  # a subsequence: the order stays


def _list(rng: np.random.Generator, size: int) -> tuple[str, str]:
    pool = _letters(rng, size, different=True)
    count = int(rng.integers(3, size + 1))
    return f"{count}\n{pool}", "".join(pool[i] for i in rng.permutation(size)[:count])


def _right_list(question: str, text: str) -> bool:
    count, pool = question.split("\n")
    return len(text) == int(count) == len(set(text)) and set(text) <= set(pool)


def _json(rng: np.random.Generator, size: int) -> tuple[str, str]:
    keys = [KEYS[i] for i in rng.permutation(len(KEYS))[:size]]
    pairs = {k: str(rng.integers(10, 100)) for k in keys}
    mixed = {keys[i]: pairs[keys[i]] for i in rng.permutation(size)}
    return ",".join(f"{k}={v}" for k, v in pairs.items()), _write_pairs(mixed)


def _right_json(question: str, text: str) -> bool:
    pairs = _pairs(text)
    wanted = dict(item.split("=") for item in question.split(","))
    return pairs == wanted and text == _write_pairs(pairs or {})


KINDS: dict[str, Kind] = {
    "copy": Kind((4, 112), 16, **_function(lambda q: q, _letters, _read_letters), gen_length=128),
    "reverse": Kind(
        (4, 112), 16, **_function(lambda q: q[::-1], _letters, _read_letters), gen_length=128
    ),
    "sort": Kind(
        (4, 60),
        16,
        **_function(lambda q: "".join(sorted(q)), _letters, _read_letters),
        gen_length=64,
    ),
    "replace": Kind((4, 104), 16, **_function(_replace, _rule, _read_letters), gen_length=128),
    "latin": Kind(
        (6, 15),
        9,
        _latin,
        lambda question, text: text in completions(question),
        _read_square,
        32,
        open=True,
    ),
    "waiting": Kind((4, 20), 8, _waiting, _right_queue, _read_letters, 32, open=True),
    "sums": Kind(
        (2, 16),
        6,
        **_function(lambda q: str(sum(map(int, q.split("+")))), _sum, _read_number),
        gen_length=32,
    ),
    "list": Kind((4, 24), 10, _list, _right_list, _read_letters, 32, open=True),
    "json": Kind((2, 18), 5, _json, _right_json, _read_json, 128, open=True),
}
