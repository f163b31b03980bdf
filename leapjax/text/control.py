"""Control tokens in text: found where they are meant, broken up where they are not.

A user's text may spell a control token. Before it goes through a chat template, every
such spelling gets a guard character in its middle; in what the template renders, whole
spellings are then the template's own, and the guards are taken out again:

    content "<|eot|>"  ->  "<\ue000|eot|>"  ->  template  ->  "<\ue000|eot|><|eot|>"
                                   text "<|eot|>" ──┘            └── control token
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import AddedToken

from leapjax.errors import UserError


class ControlTokens:
    """The spellings of a tokenizer's added tokens.

    Args:
      added: added tokens by id.
    """

    def __init__(self, added: Mapping[int, AddedToken]):
        # The longest of those that start at a place, as the tokenizer itself chooses.
        self._order = sorted(added, key=lambda i: -len(added[i].content))
        tokens = [added[i] for i in self._order]
        self._whole = re.compile("|".join(map(_pattern, tokens))) if tokens else None
        # Overlapping occurrences count too; a single character has no middle to guard.
        spelled = "|".join(re.escape(t.content) for t in tokens if len(t.content) > 1)
        self._spelled = re.compile(f"(?=(?:{spelled}))") if spelled else None
        self._heads = {t.content[:n] for t in tokens for n in range(1, len(t.content))}
        self._tails = {t.content[n:] for t in tokens for n in range(1, len(t.content))}
        self._longest = max((len(t.content) for t in tokens), default=0)
        self._all = "\0".join(t.content for t in tokens)

    def cuts(self, text: str) -> list[int]:
        """Places inside every spelling in `text`, one each."""
        if self._spelled is None:
            return []
        return [m.start() + 1 for m in self._spelled.finditer(text)]

    def guard(self, text: str, mark: str) -> str:
        """Break every spelling in `text`, and every one that its surroundings could complete.

        Args:
          text: somebody's text.
          mark: the guard, a character that occurs nowhere else.
        """
        out, last = [], 0
        for at in self.cuts(text):
            out += [text[last:at], mark]
            last = at
        text = "".join([*out, text[last:]])
        # Blanks stay outside the guards, so that a template's `trim` works as ever.
        inner = text.strip()
        start = text.find(inner)
        end = start + len(inner)
        sizes = range(1, min(len(inner), self._longest) + 1)
        if any(inner[-n:] in self._heads for n in sizes):
            text = text[:end] + mark + text[end:]
        if (inner and inner in self._all) or any(inner[:n] in self._tails for n in sizes):
            text = text[:start] + mark + text[start:]
        return text

    def split(self, text: str) -> Iterator[str | int]:
        """Cut text at its control tokens: strings between them, ids for them."""
        last = 0
        for match in self._whole.finditer(text) if self._whole else ():
            if match.start() > last:
                yield text[last : match.start()]
            yield self._order[(match.lastindex or 1) - 1]  # one group per token
            last = match.end()
        if last < len(text):
            yield text[last:]


def _pattern(token: AddedToken) -> str:
    """A regular expression for a token with its matching rules."""
    pattern = f"({re.escape(token.content)})"
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    blanks = r"\s*"
    return f"{blanks if token.lstrip else ''}{pattern}{blanks if token.rstrip else ''}"


def unused_character(texts: Iterable[str]) -> str:
    """A private-use character that occurs in none of the texts."""
    seen = set().union(*map(set, texts))
    for code in range(0xE000, 0xF900):
        if chr(code) not in seen:
            return chr(code)
    raise UserError("the messages use every private-use character; remove some")


def strings_in(value: Any) -> Iterator[str]:
    """Every string inside a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


def map_strings(value: Any, change) -> Any:
    """A JSON value with every string inside it changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_strings(k, change): map_strings(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value
