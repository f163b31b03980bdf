"""Text that knows who wrote it: the characters are those of plain strings, and so is the account.

Users write lower case and blanks, templates upper case and signs, so that every character of a
result tells where it came from.
"""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax.text.provenance import (
    ASSISTANT,
    TEMPLATE,
    USER,
    Sourced,
    concat,
    formatted,
    percent,
    plain,
    told,
    who_of,
)

MINE = "abc \n\t"  # a user's characters
THEIRS = "XYZ<|>"  # a template's
MIXED = st.lists(st.text(MINE, max_size=4) | st.text(THEIRS, max_size=3), max_size=4)


def mixed(pieces):
    return concat([told(p, USER) if p and p[0] in MINE else p for p in pieces])


def expected(text):
    return "".join(USER if c in MINE else TEMPLATE for c in text)


def check(got, native):
    if isinstance(native, str):
        assert plain(got) == native
        assert who_of(got) == expected(native)
    else:
        assert type(got) is type(native) and len(got) == len(native)
        for g, n in zip(got, native, strict=True):
            check(g, n)


PIECE = st.sampled_from(["a", "b", " ", "\n", "X", "<|", "ab", "\n\n"])
EXACT = {
    "split": st.tuples(st.none() | PIECE, st.integers(-1, 3)),
    "rsplit": st.tuples(st.none() | PIECE, st.integers(-1, 3)),
    "splitlines": st.tuples(st.booleans()),
    "partition": st.tuples(PIECE),
    "rpartition": st.tuples(PIECE),
    "strip": st.tuples(st.none() | PIECE),
    "lstrip": st.tuples(st.none() | PIECE),
    "rstrip": st.tuples(st.none() | PIECE),
    "removeprefix": st.tuples(PIECE),
    "removesuffix": st.tuples(PIECE),
    "__getitem__": st.tuples(st.slices(8)),
    "__mul__": st.tuples(st.integers(-1, 3)),
    "__iter__": st.tuples(),
}


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_methods_keep_the_account(name, data):
    text = mixed(data.draw(MIXED))
    args = data.draw(EXACT[name])
    got = getattr(Sourced(text, who_of(text)), name)(*args)
    native = getattr(plain(text), name)(*args)
    check(list(got) if name == "__iter__" else got, list(native) if name == "__iter__" else native)


@settings(max_examples=100, deadline=None)
@given(MIXED, MIXED, PIECE, st.integers(-1, 3))
def test_several_texts_in_one(one, two, old, count):
    a, b = mixed(one), mixed(two)
    lifted = Sourced(a, who_of(a))
    check(lifted.replace(old, b, count), plain(a).replace(old, plain(b), count))
    check(lifted.join([b, "X", b]), plain(a).join([plain(b), "X", plain(b)]))
    check(lifted + b + "X", plain(a) + plain(b) + "X")
    check("X" + lifted, "X" + plain(a))


def test_format():
    text, form = told("ab", USER), string.Formatter()
    assert who_of(formatted("<{}|{x}>", (text,), {"x": text}, form)) == "022022" + "0"
    assert who_of(formatted("{0}{0!r}", (text,), {}, form)) == "222222"
    assert who_of(formatted("<{:>4}>", (text,), {}, form)) == "022220"
    assert set(who_of(formatted("<{:{}}>", (text, 4), {}, form))) == {USER}  # not taken apart
    assert who_of(percent("%(a)s-%(b)d", {"a": text, "b": 3})) == "2200"
    assert who_of(percent("<%s>", text)) == "0220"
    assert set(who_of(percent("%*d%s", (2, 3, text)))) == {USER}


def test_no_method_of_strings_loses_the_account():
    """Each that gives text gives text with an account, and what may differ is the user's."""
    text = concat(["X", told("ßa\t.", USER), told("z", ASSISTANT), "Y"])
    other = {
        "center": (9,),
        "expandtabs": (3,),
        "ljust": (9, "*"),
        "rjust": (9,),
        "zfill": (9,),
        "translate": ({ord("a"): "b"},),
        "join": (["X", "X"],),
        "replace": ("", "Q"),
        "__add__": ("Q",),
        "__radd__": ("Q",),
        "__mul__": (2,),
        "__rmul__": (2,),
        "__getitem__": (slice(2),),
        "removeprefix": ("X",),
        "removesuffix": ("Y",),
        "partition": (".",),
        "rpartition": (".",),
        "__mod__": ((),),
        "__rmod__": ("%s",),
    }
    exempt = {
        "format",  # a template's calls go by `formatted`
        "format_map",
        "encode",  # refused by the sandbox
        "maketrans",  # gives no text
        "__format__",
        "__repr__",
        "__dir__",
        "__reduce__",  # those with underscores are out of a template's reach
        "__reduce_ex__",
        "__getnewargs__",
        "__getstate__",
    }
    for name in sorted(set(dir(str)) - exempt):
        method = getattr(text, name, None)
        if not callable(method) or name in ("__class__", "__init_subclass__", "__subclasshook__"):
            continue
        try:
            got = method(*other.get(name, ()))
        except TypeError:
            continue
        for piece in got if isinstance(got, list | tuple) else [got]:
            if isinstance(piece, str):
                assert isinstance(piece, Sourced), name
                assert len(piece._who) == len(piece), name
    assert plain(text.upper()) == "XSSA\t.ZY"
    assert who_of(text.upper()) == "02222210"
