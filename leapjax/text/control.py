"""Control tokens in text: found where their author may write them.

A user's text may spell a control token. What a template renders says who wrote each character
(`leapjax.text.provenance`), and that decides what a spelling is:

    template's own characters   every added token
    an assistant's              added tokens that are not special (`<think>`)
    anybody else's              none
    of several authors          none: nobody completes what another began
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import AddedToken

from leapjax.text.provenance import ASSISTANT, TEMPLATE, USER

_RUNS = re.compile(r"(.)\1*")


class ControlTokens:
    """The spellings of a tokenizer's added tokens.

    `added`: added tokens by id; `special`: ids of those that are special.
    """

    def __init__(self, added: Mapping[int, AddedToken], special: frozenset[int]):
        self._added = added
        # Added runs of blanks are ordinary text; everything else added is control.
        self.ids = frozenset(i for i in added if i in special or not added[i].content.isspace())
        self._allowed = {
            TEMPLATE: frozenset(added),
            ASSISTANT: frozenset(added) - special,
            USER: frozenset(added) - self.ids,
        }
        self._patterns = {who: _pattern(added, ids) for who, ids in self._allowed.items()}
        # Overlapping occurrences count too; a single character has no middle to cut.
        spelled = "|".join(re.escape(added[i].content) for i in self.ids if added[i].content[1:])
        self._spelled = re.compile(f"(?=(?:{spelled}))") if spelled else None

    def cuts(self, text: str) -> list[int]:
        """Places inside every control token's spelling in `text`, one each."""
        if self._spelled is None:
            return []
        return [m.start() + 1 for m in self._spelled.finditer(text)]

    def allowed(self, i: int, who: str) -> bool:
        """Whether those who wrote the characters of token `i` may write it.

        `who`: the author of each character.
        """
        return len(set(who)) == 1 and i in self._allowed[who[0]]

    def split(self, text: str, who: str) -> Iterator[str | int]:
        """Cut text at the added tokens that it may hold: strings between them, ids for them.

        `who`: the author of each of its characters.
        """
        last = 0
        for run in _RUNS.finditer(who):
            pattern, order = self._patterns[run[1]]
            for match in pattern.finditer(text, run.start(), run.end()):
                i = order[match.lastindex - 1]  # type: ignore[operator]  # one group per token
                token, (start, end) = self._added[i], match.span()
                beside = text[start - 1 : start] + text[end : end + 1] if token.single_word else ""
                if start < last or re.search(r"\w", beside):
                    continue
                # Blanks beside it belong to it, whoever wrote them.
                if token.lstrip:
                    start = last + len(text[last:start].rstrip())
                if token.rstrip:
                    end = len(text) - len(text[end:].lstrip())
                if start > last:
                    yield text[last:start]
                yield i
                last = end
        if last < len(text):
            yield text[last:]


def _pattern(added: Mapping[int, AddedToken], ids: Iterable[int]) -> tuple[re.Pattern, list[int]]:
    """A regular expression for some tokens, one group each, and their ids in its order."""
    # The longest of those that start at a place, as the tokenizer itself chooses.
    order = sorted(ids, key=lambda i: -len(added[i].content))
    spelled = "|".join(f"({re.escape(added[i].content)})" for i in order)
    return re.compile(spelled or "(?!)"), order


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
