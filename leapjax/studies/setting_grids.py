"""Grids of decode options: `threshold=0.7:0.95:6 radius=0,1,2` and the settings they stand for."""

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leapjax.config import OPTIONS, DecodeConfig, check_keys, per_row
from leapjax.config.check import coerce
from leapjax.errors import UserError
from leapjax.policies import PARAMETERS, POLICIES, Parameter
from leapjax.policies.names import policy_of, suggestion

# Options that shape the compiled program: each of their combinations is a stream of its own.
STRUCTURAL = ("policy", "cache", "gen_length", "block_length")
MOST_POINTS = 10_000


class Axis(NamedTuple):
    """An option and the distinct values it takes, in the order given."""

    name: str
    values: tuple[Any, ...]


class Point(NamedTuple):
    """One setting of a grid: its values, by axis that the policy reads, and its decode options."""

    values: Mapping[str, Any]
    config: DecodeConfig


class Grid(NamedTuple):
    """The settings of a grid."""

    axes: tuple[Axis, ...]  # in the order given
    points: tuple[Point, ...]  # each setting once
    left_out: int  # combinations whose relaxed (or low) threshold is above the threshold
    merged: int  # combinations that differ in nothing that their policy reads


def parse_axis(text: str) -> Axis:
    """Parse an axis: `NAME=a,b,c`, or `NAME=a:b:n` for n values from a to b.

    >>> parse_axis("threshold=0.7:0.9:3")
    Axis(name='threshold', values=(0.7, 0.8, 0.9))
    """
    unreadable = UserError(f"--grid {text!r}: expected NAME=a,b,c or NAME=first:last:count")
    name, equals, right = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not right.strip():
        raise unreadable
    axes = (*(option for option in per_row() if option != "seed"), *STRUCTURAL)
    check_keys([name], "--grid", axes, "axis")
    kind = OPTIONS[name].kind
    parts = right.split(":")
    if len(parts) == 1:
        values = [_value(name, kind, part.strip()) for part in right.split(",")]
    elif len(parts) == 3 and kind in (int, float):
        values = _linspace(text, *parts)
        if kind is int and (part := [x for x in values if x != int(x)]):
            raise UserError(f"--grid: {name} takes whole numbers, not {part[0]:g}; list its values")
        values = [kind(x) for x in values]
    else:
        raise unreadable
    return Axis(name, tuple(dict.fromkeys(values)))


def _linspace(text: str, first: str, last: str, count: str) -> list[float]:
    try:
        a, b, n = float(first), float(last), int(count)
    except ValueError:
        raise UserError(f"--grid {text!r}: first and last are numbers, count is whole") from None
    if not (math.isfinite(a) and math.isfinite(b)) or not 1 <= n <= MOST_POINTS:
        raise UserError(f"--grid {text!r}: expected finite ends and 1 to {MOST_POINTS} values")
    # Rounded, so that 0.7:0.95:6 names the 0.8 that a list would name.
    return [a] if n == 1 else [round(a + (b - a) * i / (n - 1), 10) for i in range(n)]


def _value(name: str, kind: type, text: str) -> Any:
    value: Any = {"true": True, "false": False}.get(text, text)
    with contextlib.suppress(ValueError):
        value = float(text) if kind in (int, float) else value
    try:
        return coerce(OPTIONS[name], value)
    except UserError as e:
        raise UserError(f"--grid: {e}") from e


def build(axes: Sequence[Axis], base: DecodeConfig) -> Grid:
    """Every combination of the axes' values.

    `base` has the other options. Where `policy` is an axis, a policy's points are those of the
    axes that it reads.
    """
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--grid: {name} is given twice; write all its values in one axis")
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_POINTS:
        raise UserError(f"--grid: {count} points are more than {MOST_POINTS}; take fewer values")
    policies = next((axis.values for axis in axes if axis.name == "policy"), (base.policy,))
    reading = {}
    for p in policies:
        if (found := policy_of(p)) is None:
            raise UserError(f"--grid: unknown policy {p!r}; {suggestion(p)}")
        reading[p] = POLICIES[found[0]].reads
    for name in names:
        if name in PARAMETERS and not any(name in reads for reads in reading.values()):
            raise UserError(f"--grid: policy {', '.join(policies)} does not read {name}")
    points: dict[DecodeConfig, Point] = {}
    left_out = merged = 0
    for combination in itertools.product(*(axis.values for axis in axes)):
        values = dict(zip(names, combination, strict=True))
        reads = reading[values.get("policy", base.policy)]
        if len(policies) > 1:
            values = {n: v for n, v in values.items() if n not in PARAMETERS or n in reads}
        if _out_of_order(values, reads):
            left_out += 1
            continue
        try:
            config = base.replace(**values)
        except UserError as e:
            raise UserError(f"--grid: {e}") from e
        merged += config in points
        points.setdefault(config, Point(values, config))
    if not points:
        raise UserError("--grid: no point is left, every relaxed threshold is above its threshold")
    return Grid(tuple(axes), tuple(points.values()), left_out, merged)


def _out_of_order(values: Mapping[str, Any], reads: Mapping[str, Parameter]) -> bool:
    """Whether a lower threshold, or its default, is above the threshold."""

    def value(name: str) -> Any:
        return values.get(name, reads[name].default)

    return any(p.at_most and value(p.name) > value(p.at_most) for p in reads.values())
