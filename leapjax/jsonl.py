"""Lines of JSONL: strict JSON in, in constant memory; UTF-8 out."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from leapjax.errors import UserError

_LONGEST_LINE = 1 << 26  # bytes; a longer one is no record


def to_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSONL, line end included."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a lone surrogate in the metadata goes back as it came
        line = json.dumps(record, allow_nan=False)
    return line + "\n"


def read_lines(stream: BinaryIO, name: str, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers, in constant memory.

    `stream`: a JSONL file, in bytes; `name`: how messages call it; `first`: number of the line at
    which the stream is. Raises UserError: a line is longer than any record could be, or reading
    fails.
    """
    number = first - 1
    while True:
        try:
            line = stream.readline(_LONGEST_LINE + 1)
        except OSError as e:
            raise UserError(f"{name}: can't be read ({e.strerror or e})") from e
        if not line:
            return
        number += 1
        if len(line) > _LONGEST_LINE:
            raise UserError(f"{name} line {number}: longer than {_LONGEST_LINE} bytes")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The record on a line of JSONL. `line`: the line's bytes."""
    try:
        value = json.loads(
            line.decode(),
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 (byte {e.start + 1}); save the file as UTF-8") from e
    except json.JSONDecodeError as e:
        raise UserError(f"{where}: not valid JSON ({e.msg} at column {e.colno})") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not valid JSON ({e})") from e
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, got {kind_of(value)}")
    return value


def _no_constant(name: str):
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is too large a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [k for k, _ in pairs]
        twice = next(n for n in names if names.count(n) > 1)
        raise ValueError(f"key {twice!r} occurs twice in an object")
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is called in messages."""
    names = {
        "dict": "an object",
        "list": "a list",
        "str": "a text",
        "NoneType": "null",
        "bool": "true or false",
        "int": "a number",
        "float": "a number",
    }
    return names.get(type(value).__name__, type(value).__name__)
