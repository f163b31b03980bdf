"""The fields of a receipt: their check when one is read, and its table.

docs/receipts/README.md says what each field means.
"""

import json
import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from leapjax import storage
from leapjax.benchmarks.timing import spread
from leapjax.errors import UserError
from leapjax.studies.tables import markdown_table

SCHEMA = 1

# A name of `KINDS` for each value, with `?` where it may be null; a list has items of one kind.
FIELDS: dict[str, Any] = json.loads(
    (files("leapjax") / "data" / "receipt-fields.json").read_text("utf-8")
)


def _amount(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _number(value: Any) -> bool:
    return _amount(value) and value > 0


def _spread(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"n", "median", "min", "max"}:
        return False
    numbers = [value[name] for name in ("min", "median", "max")]
    if not all(map(_number, numbers)) or numbers != sorted(numbers):
        return False
    return type(value["n"]) is int and value["n"] >= 1


# kind -> test and description of a value.
KINDS = {
    "text": (lambda v: isinstance(v, str) and v.isprintable() and v != "", "a line of text"),
    "whole": (lambda v: type(v) is int and v >= 0, "a whole number of at least 0"),
    "amount": (_amount, "a number of at least 0"),
    "number": (_number, "a number above 0"),
    "flag": (lambda v: isinstance(v, bool), "true or false"),
    "spread": (_spread, "n of at least 1, and 0 < min <= median <= max"),
}


def faults(value: Any, fields: Any = FIELDS, path: str = "") -> Iterator[str]:
    """What is wrong with a receipt.

    `value`: JSON-ready; `path`: of the value, such as `cases[0].passes`.

    >>> list(faults({"n": -1, "m": 0}, {"n": "whole"}))
    ['m is unknown', 'n is -1; expected a whole number of at least 0']
    """
    if isinstance(fields, str):
        test, expected = KINDS[fields.removesuffix("?")]
        if not (fields.endswith("?") and value is None or test(value)):
            yield f"{path} is {json.dumps(value)[:60]}; expected {expected}"
    elif isinstance(fields, list):
        if not isinstance(value, list):
            yield f"{path} is no list"
            return
        for i, item in enumerate(value):
            yield from faults(item, fields[0], f"{path}[{i}]")
    elif not isinstance(value, dict):
        yield f"{path or 'the file'} is no object"
    else:
        start = f"{path}." if path else ""
        yield from (f"{start}{name} is unknown" for name in value.keys() - fields.keys())
        for name, kind in fields.items():
            if name in value:
                yield from faults(value[name], kind, start + name)
            else:
                yield f"{start}{name} is missing"


def paths(fields: Any = FIELDS, path: str = "") -> Iterator[str]:
    """The names of all fields, such as `cases.passes.seconds`."""
    if isinstance(fields, str):
        yield path
    elif isinstance(fields, list):
        yield from paths(fields[0], path)
    else:
        for name, kind in fields.items():
            yield from paths(kind, f"{path}.{name}" if path else name)


def read(path: str) -> dict[str, Any]:
    """Read and check a receipt.

    Raises UserError: it can't be read, or is no receipt of this schema.
    """
    try:
        with storage.open_read(path) as file:
            value = json.loads(file.read().decode())
    except OSError as e:
        raise UserError(f"{path}: can't be read ({e.strerror or e})") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: is no JSON ({e})") from e
    if not isinstance(value, dict) or type(value.get("receipt")) is not int:
        raise UserError(f"{path}: is no receipt; leapjax benchmark --receipt FILE makes one")
    if value["receipt"] != SCHEMA:
        raise UserError(
            f"{path}: is a receipt of schema {value['receipt']}, this leapjax reads {SCHEMA}; "
            "read it with the leapjax that wrote it (versions.leapjax)"
        )
    found = list(faults(value))
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(f"{path}: {found[0]}{more}")
    return value


def table(receipts: Sequence[dict[str, Any]]) -> str:
    """Receipts as a Markdown table, a line for each pass and each ragged decode."""
    cells: list[tuple[str, ...]] = [
        ("device", "model", "what", "ms (range)", "of the floor", "times the bound", "tokens/s")
    ]
    for receipt in receipts:
        model, device = receipt["model"], receipt["device"]
        golden = "" if receipt["golden"]["equal"] else ", golden DIFFERS"
        quick = ", quick" if receipt["options"]["quick"] else ""
        mesh = f", {receipt['options']['mesh']}" if receipt["options"]["mesh"] else ""
        head = (
            f"{device['kind']}{mesh}{golden}{quick}",
            f"{model['name']}, {model['layers']} layers, {model['dtype']}",
        )
        for case in receipt["cases"]:
            for i, each in enumerate(case["passes"]):
                cells.append(
                    (
                        *head,
                        f"{case['cache']}, {case['rows']} rows, {each['pass']}",
                        spread(each["seconds"], 2, 1e3),
                        spread(each["floor_share"]),
                        spread(each["over_plan"]["bound"]),
                        "" if i else spread(case["tokens_per_s"], 0),
                    )
                )
        ragged = receipt["ragged"]
        cells.append(
            (
                *head,
                f"{ragged['cache']}, {ragged['slots']} slots, ragged",
                "",
                "",
                spread(ragged["over_plan"]),
                spread(ragged["tokens_per_s"], 0),
            )
        )
    return markdown_table(cells, 3)
