"""Odd values, and odd versions of a value; damage that any JSON file can suffer."""

import json
import math

ODD = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1.0, 0.5, -0.5, 1e-3, 1e6, 1e30, 1e-30,
    2**31, 2**63, 10**30, math.nan, math.inf, -math.inf, "", "0", "1", "1.0", "true", "false",
    "null", "None", "a", [], {}, [1], [None], {"a": 1}, "\ud800", "\0", "é" * 300,
]  # fmt: skip
LITERALS = ["1e400", "-1e400", "1E-400", "0.10", "00", "'a'", "NaN", "-0", "-0.0", "1" * 5000,
            '"\\ud800"', '"\x01"', "[" * 3000, "tru", ""]  # fmt: skip


def near(rng, old):
    """A value that somebody could have meant instead of `old`."""
    if isinstance(old, bool):
        return rng.choice([not old, int(old), str(old).lower(), str(old), None])
    if isinstance(old, int):
        return rng.choice(
            [old + 1, old - 1, 2 * old, old // 2, -old, float(old), old + 0.5, str(old), [old],
             old * 1000, 0, None]
        )  # fmt: skip
    if isinstance(old, float) and math.isfinite(old):
        return rng.choice(
            [old * 2, old / 2, old * 1.01, -old, str(old), [old], 0.0, round(old), old * 1e3, None]
        )
    if isinstance(old, str):
        return rng.choice(
            [old.upper(), old.lower(), old.title(), old + " ", " " + old, old[:-1], old * 2, [old],
             {"content": old}, None, ""]
        )  # fmt: skip
    if isinstance(old, list):
        return rng.choice(
            [
                old[::-1],
                old + old,
                old[1:],
                old[:1],
                dict(enumerate(old)),
                None,
                "".join(map(str, old)),
            ]
        )
    if isinstance(old, dict):
        return rng.choice([{}, [], list(old), list(old.values()), None, json.dumps(old)])
    return rng.choice(ODD)


def json_damage(rng, file, raw, size):
    """An edit that spoils a JSON file as a file, not one of its values."""
    key = rng.choice(list(raw) or ["a"]) if isinstance(raw, dict) else "a"
    return rng.choice(
        [
            ["cut", file, rng.randrange(size)],
            ["encode", file, rng.choice(["utf-8-sig", "utf-16", "utf-32", "latin-1", "cp037"])],
            ["twice", file, key, rng.choice([near(rng, raw.get(key)), raw.get(key)])]
            if isinstance(raw, dict)
            else ["delete", file],
            ["literal", file, [key], rng.choice(LITERALS)],
            ["text", file, rng.choice(["", " ", "null", "[]", "{}", "{", "3", '"a"', "\0", "[[[[",
                                       '{"a":1}{"b":2}', "// comment\n{}", "{,}"])],
            ["insert", file, rng.randrange(size), rng.choice(["\xff", "\0", ",", '"', "}", "\x80a"])],
            ["delete", file],
            ["set", file, [], rng.choice(ODD)],
        ]
    )  # fmt: skip


def paths(value, prefix=(), depth=4):
    """Every path into a JSON value; of long containers only some entries."""
    out = [list(prefix)] if prefix else []
    if depth and isinstance(value, dict):
        items = list(value.items())
    elif depth and isinstance(value, list):
        items = list(enumerate(value))
    else:
        return out
    if len(items) > 40:
        items = items[:6] + items[-6:]
    for key, inner in items:
        out += paths(inner, (*prefix, key), depth - 1)
    return out


def at(value, path):
    for key in path:
        value = value[key]
    return value


def json_edit(rng, file, raw, size):
    """One edit of a JSON file, anywhere in it."""
    if rng.random() < 0.15:
        return json_damage(rng, file, raw, size)
    path = rng.choice(paths(raw) or [["a"]])
    how = rng.random()
    if how < 0.2:
        return ["drop", file, path]
    if how < 0.6:
        return ["set", file, path, near(rng, at(raw, path) if raw else None)]
    if how < 0.9:
        return ["set", file, path, rng.choice(ODD)]
    other = rng.choice(paths(raw) or [["a"]])
    return [
        "set",
        file,
        path,
        at(raw, other) if raw else 1,
    ]  # two values that don't belong together
