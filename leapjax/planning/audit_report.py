"""An audit as JSON, and as text for a terminal of 80 columns (docs/audit.md has the schema)."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from leapjax.planning.audit import Audit, Operation, Pass
from leapjax.planning.chips import Chip
from leapjax.planning.need import FULL, WINDOW

_LISTED = 10  # operations a pass in JSON
_SHOWN = 5  # in text


def record(found: Audit, chip: Chip) -> dict[str, Any]:
    """An audit, JSON-ready."""
    moved, needed = found.step
    return {
        "step": {"moved": moved, "need": needed, "ratio": _ratio(moved, needed)},
        "passes": {name: _pass(one, chip) for name, one in found.passes.items()},
        "outside": _pass(found.outside, chip),
    }


def _pass(one: Pass, chip: Chip) -> dict[str, Any]:
    total = one.need.total if one.need else None
    return {
        "turns": one.turns,
        "read": one.read,
        "written": one.written,
        "moved": one.moved,
        "need": dataclasses.asdict(one.need) | {"total": total} if one.need else None,
        "ratio": _ratio(one.moved, total),
        "estimated_cycles": one.cycles,
        "estimated_ms": 1000 * one.cycles / chip.clock,
        "inexact": [_operation(o) for o in one.operations if not o.exact],
        "copied": sum(o.written for o in one.copies),
        "wasteful": [_operation(o) for o in one.operations[:_LISTED] if o.wasted],
        "copies": [_operation(o) for o in one.copies[:_LISTED]],
    }


def _operation(one: Operation) -> dict[str, Any]:
    out = dataclasses.asdict(one) | {"inside": list(one.inside), "of": list(one.of)}
    return {k: v for k, v in out.items() if k != "moves_only"}


def _ratio(moved: float, need: float | None) -> float | None:
    return round(moved / need, 3) if need else None


def lines(plan: dict[str, Any]) -> list[str]:
    """An audit for a terminal."""
    audit = plan["audit"]
    parts = {**audit["passes"], "outside": audit["outside"]}
    form = f", {plan['quantize']}" if plan["quantize"] else ""
    out = [
        f"{plan['topology']}, {plan['mesh']}, {plan['rows_a_replica']} rows a replica{form}:",
        "bytes to and from HBM on a device, counted in the compiled program",
        "",
        f"{'GB':<22} {'read':>7} {'written':>7} {'moved':>7} {'need':>7} {'ratio':>6} "
        f"{'copied':>7} {'est. ms':>8}",
    ]
    for name, one in parts.items():
        label = f"{name} (a turn)" if one["turns"] is None else name
        out.append(
            f"{label:<22} {_gb(one['read'])} {_gb(one['written'])} {_gb(one['moved'])} "
            f"{_gb(one['need'] and one['need']['total'])} {_number(one['ratio'], 6)} "
            f"{_gb(one['copied'])} {_number(one['estimated_ms'], 8, 1)}"
        )
    step, base = audit["step"], FULL if FULL in parts else WINDOW
    if base in parts:
        label = f"{base} + besides"
        out.append(
            f"{label:<38} {_gb(step['moved'])} {_gb(step['need'])} {_number(step['ratio'], 6)}"
        )
    out += ["", *_notes(parts)]
    for name, one in audit["passes"].items():
        out += _wasteful(name, one)
    out += [*_copies(audit), "", *_collectives(plan["counted"]["collectives"])]
    return [*out, f"temporaries: {plan['counted']['temporaries'] / 1e9:.2f} GB"]


def _notes(parts: dict[str, Any]) -> list[str]:
    out = [
        "need: weights, keys and values, and each layer's residual stream, once each",
        "copied: written by operations that compute nothing",
        "est. ms: the compiler's own estimate, none for collectives and Pallas calls",
    ]
    if count := sum(len(one["inexact"]) for one in parts.values()):
        out.append(f"{count} Pallas calls copy what depends on data or on the kernel: not exact")
    if any(one["turns"] is None for one in parts.values()):
        out.insert(0, "a turn: of a loop whose number of turns depends on data")
    if "outside" in parts:
        out.insert(0, "outside: once a chunk of passes, before and after the decode loop")
    return out


def _wasteful(name: str, one: dict[str, Any]) -> Iterator[str]:
    shown = [o for o in one["wasteful"][:_SHOWN] if o["wasted"] >= 0.005 * one["moved"]]
    if not shown:
        return
    yield ""
    yield f"{name}: most bytes beyond weights and cache read for the first time"
    yield f"{'GB':>8} {'times':>6}  operation"
    for o in shown:
        of = f" of {', '.join(o['of'])}" if o["of"] else ""
        where = f"{o['opcode']} {o['name']}"
        yield f"{o['wasted'] / 1e9:>8.3f} {o['times']:>6}  {_fitted(where, 63)}"
        for text in (o["scope"], f"{o['result']}{of}"):
            if text:
                yield f"{'':>16}  {_fitted(text, 62)}"


def _copies(audit: dict[str, Any]) -> list[str]:
    few = 0.01 * audit["step"]["moved"]
    large = [o for o in audit["outside"]["copies"] if o["written"] > few]
    if not large:
        return ["", "no large copy outside the loop"]
    out = ["", "copies outside the loop, at entry or at the end:"]
    for o in large:
        what = f"{o['result']} of {', '.join(o['of']) or o['scope'] or o['name']}"
        out.append(f"{o['written'] / 1e9:>8.3f} GB  {_fitted(what, 66)}")
    return out


def _collectives(listed: list[dict[str, Any]]) -> Iterator[str]:
    if not listed:
        yield "no collectives"
        return
    yield f"{'collectives':<34} {'over':<12} {'MB':>10} {'times':>6}  asynchronous"
    for one in listed:
        yield (
            f"{one['part'] + ': ' + one['kind']:<34} {one['over']:<12} {one['bytes'] / 1e6:>10.3f} "
            f"{one['times']:>6}  {'yes' if one['asynchronous'] else 'no'}"
        )


def _fitted(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def _gb(value: float | None, width: int = 7) -> str:
    return f"{value / 1e9:>{width}.2f}" if value is not None else f"{'-':>{width}}"


def _number(value: float | None, width: int, digits: int = 2) -> str:
    return f"{value:>{width}.{digits}f}" if value is not None else f"{'-':>{width}}"
