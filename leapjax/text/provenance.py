"""Strings that know who wrote each of their characters, through everything a template does.

A chat template must see the text as it came: it splits, trims, compares and measures it. What
it makes of the text must still say which characters are the template's own, because only those
may become control tokens. So text reaches the template as `Sourced`, a `str` with a second
string of the same length:

    "Hi<|eot|>"  "222222222"     a user's text
    "<|eot|>"                    a plain `str` is the template's own
    "Hi<|eot|>" + "<|eot|>"      "222222222" + "000000000"

The characters of a result are always those that plain strings give. Where an operation does not
say which character came from whom, all of its result counts as written by the least trusted
author among its arguments; it then spells no control token, which is the safe side.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from markupsafe import Markup

# Who wrote a character, from the most trusted to the least. Users stand for everyone but the
# assistant: system, tools and the names of a message's keys too.
TEMPLATE, ASSISTANT, USER = "012"

_CONTAINERS = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
_PERCENT = re.compile(r"%(?:\((?P<key>[^()]*)\))?(?P<how>[-#0 +]*(?:\*|\d*)(?:\.(?:\*|\d*))?)(.)")


class Sourced(str):
    """Text and, for each character, who wrote it.

    `text`: the characters; `who`: as many of `TEMPLATE`, `ASSISTANT`, `USER`.
    """

    __slots__ = ("_who",)  # a template can't reach names that begin with an underscore
    _who: str

    def __new__(cls, text: str, who: str) -> Sourced:
        """Make one; see the class."""
        made = super().__new__(cls, plain(text))
        made._who = who
        return made

    # `str(x)` would make a plain string of it otherwise.
    def __str__(self) -> str:
        return self

    def __getitem__(self, key) -> Sourced:
        return Sourced(super().__getitem__(key), self._who[key])

    def __iter__(self) -> Iterator[Sourced]:
        return map(Sourced, super().__iter__(), self._who)

    def __add__(self, other):
        if not isinstance(other, str) or isinstance(other, Markup):
            return NotImplemented
        return concat((self, other))

    def __radd__(self, other):
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count):
        return Sourced(super().__mul__(count), self._who * count)

    def __rmul__(self, count):
        return self * count

    def __mod__(self, values):
        return percent(self, values)

    def __rmod__(self, form):
        return percent(form, self) if isinstance(form, str) else NotImplemented

    def lstrip(self, chars=None, /):
        """As `str.lstrip`."""
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars=None, /):
        """As `str.rstrip`."""
        return self[: len(super().rstrip(chars))]

    def strip(self, chars=None, /):
        """As `str.strip`."""
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix, /):
        """As `str.removeprefix`."""
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix, /):
        """As `str.removesuffix`."""
        return self[: len(super().removesuffix(suffix))]

    def split(self, sep=None, maxsplit=-1):
        """As `str.split`."""
        return self._pieces(super().split(sep, maxsplit), sep)

    def rsplit(self, sep=None, maxsplit=-1):
        """As `str.rsplit`."""
        return self._pieces(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends=False):
        """As `str.splitlines`."""
        starts = itertools.accumulate(map(len, super().splitlines(True)), initial=0)
        lines = super().splitlines(keepends)
        return [self[at : at + len(line)] for at, line in zip(starts, lines, strict=False)]

    def partition(self, sep, /):
        """As `str.partition`."""
        return tuple(self._pieces(super().partition(sep), ""))

    def rpartition(self, sep, /):
        """As `str.rpartition`."""
        return tuple(self._pieces(super().rpartition(sep), ""))

    def join(self, items, /):
        """As `str.join`."""
        items = list(items)
        return Sourced(super().join(items), self._who.join(map(who_of, items)))

    def replace(self, old, new, count=-1, /):
        """As `str.replace`."""
        result = super().replace(old, new, count)
        if not old:
            return covered(result, (self, new))
        return Sourced(result, who_of(new).join(map(who_of, self.split(old, count))))

    def _pieces(self, pieces: Iterable[str], sep: str | None) -> list[Sourced]:
        """Parts of this text, in order, as slices of it."""
        found, at = [], 0
        for piece in pieces:
            if sep is None:  # between them are blanks, which none of them begins with
                at = self.index(piece, at)
            found.append(self[at : at + len(piece)])
            at += len(piece) + len(sep or "")
        return found


class Escaped(Markup):
    """What `|safe` and `|escape` make; only of `|safe` itself is the account kept."""

    _who: str | None = None

    def __iter__(self) -> Iterator[Sourced]:
        return map(Sourced, super().__iter__(), who_of(self))

    def unescape(self) -> Sourced:
        """As `Markup.unescape`."""
        return Sourced(super().unescape(), USER * len(super().unescape()))

    def striptags(self) -> Sourced:
        """As `Markup.striptags`."""
        return Sourced(super().striptags(), USER * len(super().striptags()))


def _cased(name: str):
    change = getattr(str, name)

    def method(self):
        result, who = change(self), self._who
        if len(result) != len(who):  # "ß" becomes "SS"
            who = "".join(w * len(change(plain(c))) for c, w in zip(self, who, strict=True))
        return Sourced(result, who) if len(who) == len(result) else covered(result, self)

    return method


def _covering(name: str):
    change = getattr(str, name)

    def method(self, *args, **kwargs):
        result = change(self, *args, **kwargs)
        return self if result == self else covered(result, (self, args, kwargs))

    return method


for _name in ("capitalize", "casefold", "lower", "swapcase", "title", "upper"):
    setattr(Sourced, _name, _cased(_name))
for _name in ("center", "expandtabs", "ljust", "rjust", "translate", "zfill"):
    setattr(Sourced, _name, _covering(_name))


def plain(text: str) -> str:
    """The characters alone."""
    return str.__str__(text)


def who_of(text: str) -> str:
    """Who wrote each character; `Markup` is made from anybody's text and keeps no account."""
    if isinstance(text, Sourced | Escaped) and text._who is not None:
        return text._who
    return (USER if isinstance(text, Markup) else TEMPLATE) * len(text)


def author(value: Any) -> str:
    """The least trusted author of any text in a value; objects may hold anybody's."""
    if value is None or isinstance(value, int | float):
        return TEMPLATE
    if isinstance(value, str):
        who = who_of(value)
        return next((a for a in (USER, ASSISTANT) if a in who), TEMPLATE)
    if isinstance(value, Mapping):
        return max(author(list(value.keys())), author(list(value.values())))
    if isinstance(value, _CONTAINERS):
        return max(map(author, value), default=TEMPLATE)
    return USER


def lifted(value: Any) -> Any:
    """A plain string becomes `Sourced`, so that its methods keep account of their arguments."""
    return Sourced(value, TEMPLATE * len(value)) if type(value) is str else value


def covered(result: Any, given: Any) -> Any:
    """A string whose account is unknown: all by the least trusted author of what was given."""
    if isinstance(result, Markup):
        return Escaped(result)
    if not isinstance(result, str):
        return result
    return Sourced(result, author(given) * len(result))


def safe(value: Any) -> Escaped:
    """`value|safe`: the same characters, which nobody escapes any more."""
    made = Escaped(value)
    made._who = who_of(value) if isinstance(value, str) else author(value) * len(made)
    return made


def concat(pieces: Iterable[str]) -> str:
    """Strings one after another."""
    pieces = list(pieces)
    text = "".join(pieces)
    if not any(isinstance(p, Sourced | Markup) for p in pieces):
        return text
    return Sourced(text, "".join(map(who_of, pieces)))


def told(value: Any, author: str) -> Any:
    """A JSON value, every string in it marked as written by `author`."""
    if isinstance(value, str):
        return Sourced(value, author * len(value))
    if isinstance(value, dict):
        return {told(k, author): told(v, author) for k, v in value.items()}
    if isinstance(value, list):
        return [told(item, author) for item in value]
    return value


def percent(form: str, values: Any) -> Any:
    """`form % values`."""
    result = str.__mod__(form, values)
    if author((form, values)) == TEMPLATE:
        return result
    return _assembled(result, lambda: _percent_pieces(form, values), (form, values))


def formatted(form: str, args: tuple, kwargs: Mapping, formatter: string.Formatter) -> str:
    """`form.format(*args, **kwargs)`, by a formatter that checks what is accessed."""
    result = formatter.vformat(plain(form), args, kwargs)
    if author((form, args, kwargs)) == TEMPLATE:
        return result
    given = (form, args, kwargs)
    return _assembled(result, lambda: _format_pieces(form, args, kwargs, formatter), given)


def _assembled(result: str, pieces, given: Any) -> str:
    """A result whose pieces we know, if they really make it up."""
    try:
        made = concat(pieces())
    except Exception:  # a form that we don't take apart
        return covered(result, given)
    return made if plain(made) == result else covered(result, given)


def _percent_pieces(form: str, values: Any) -> Iterator[str]:
    left = list(values) if isinstance(values, tuple) else [values]
    last = 0
    for match in _PERCENT.finditer(plain(form)):
        yield form[last : match.start()]
        last = match.end()
        if match[3] == "%":
            yield covered("%", form)
            continue
        if "*" in match["how"]:
            raise ValueError("widths among the values")
        value = left.pop(0) if match["key"] is None else values[match["key"]]  # type: ignore[index]
        whole = isinstance(value, str) and match[3] == "s" and not match["how"]
        text = f"%{match['how']}{match[3]}" % (value,)
        yield value if whole else covered(text, (form, value))
    yield form[last:]


def _format_pieces(form: str, args, kwargs, formatter: string.Formatter) -> Iterator[str]:
    numbers = itertools.count()
    for literal, name, spec, conversion in formatter.parse(plain(form)):
        yield covered(literal, form)
        if name is None:
            continue
        if "{" in (spec or ""):
            raise ValueError("a specification among the values")
        if name[:1] in ("", ".", "["):
            name = f"{next(numbers)}{name}"
        value = formatter.get_field(name, args, kwargs)[0]
        if isinstance(value, str) and not spec and not conversion:
            yield value
        else:
            changed = formatter.convert_field(value, conversion)  # type: ignore[arg-type]
            yield covered(formatter.format_field(changed, spec or ""), (form, value))
