"""Where a device's time goes: the operations of a profile, by name and by part of the step."""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

SCOPES = ("attention", "mlp", "head", "proposal", "commit")  # jax.named_scope of the decode step
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_PATH = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_NUMBERS = re.compile(r"[._]\d+")


def scopes(program: str) -> dict[str, str]:
    """The part of the step that each operation of a compiled program belongs to.

    Args:
      program: its text.

    Returns:
      Operation name -> one of `SCOPES`, the innermost, or `other`; for a fusion that does not say
      itself, what most of it belongs to.
    """
    found: dict[str, str] = {}
    called: dict[str, str] = {}  # of operations that say nothing themselves
    inside: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    computation = ""
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            computation = match[1]
        elif match := _OPERATION.match(line):
            path, calls = _PATH.search(line), _CALLS.search(line)
            part = _part(path[1]) if path else ""
            if part:
                found[match[1]] = part
                inside[computation][part] += 1
            elif calls:
                called[match[1]] = calls[1]
    for name, computation in called.items():
        if common := inside[computation].most_common(1):
            found[name] = common[0][0]
    return found


def _part(path: str) -> str:
    """The innermost of `SCOPES` in an operation's path; `other` for none."""
    return next((p for p in reversed(path.split("/")) if p in SCOPES), "other")


def self_times(events: Iterable[tuple[float, float, Any]]) -> list[tuple[Any, float]]:
    """Time of each event without those inside it, as a loop's without its body's.

    Args:
      events: (start, duration, label) of one line of a profile.

    Returns:
      (label, own duration) pairs.
    """
    own: list[list[Any]] = []
    stack: list[tuple[float, int]] = []
    for start, duration, label in sorted(events, key=lambda e: (e[0], -e[1])):
        while stack and start >= stack[-1][0]:
            stack.pop()
        if stack:
            own[stack[-1][1]][1] -= duration
        stack.append((start + duration, len(own)))
        own.append([label, duration])
    return [(label, max(time, 0.0)) for label, time in own]


def operations(folder: Path) -> list[tuple[str, str, float]]:
    """Operations of a profile that JAX wrote: of the first accelerator, else of the CPU.

    Returns:
      (name, operation of the program or "", own nanoseconds), one each time it ran.
    """
    (file,) = folder.glob("**/*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    accelerators = [p for p in planes if p.name.startswith("/device:")]
    out = []
    for plane in accelerators[:1] or [p for p in planes if p.name == "/host:CPU"]:
        lines = list(plane.lines)
        # Beside the streams there may be lines that sum them up.
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in streams or lines:
            events = []
            for event in line.events:
                stats = {str(k): v for k, v in event.stats}
                if accelerators or "hlo_op" in stats:
                    label = (event.name, str(stats.get("hlo_op", "")))
                    events.append((event.start_ns, event.duration_ns, label))
            out += [(*label, time) for label, time in self_times(events)]
    return out


def profile(run: Callable[[], Any]) -> list[tuple[str, str, float]]:
    """Profile a call that ends when the device is done; see `operations`."""
    with tempfile.TemporaryDirectory() as name:
        with jax.profiler.trace(name):
            run()
        return operations(Path(name))


def summary(
    found: Iterable[tuple[str, str, float]], program: str, passes: int, rows: int = 25
) -> tuple[dict[str, float], str]:
    """Sum up a profile.

    Args:
      found: from `profile`.
      program: text of the compiled program that ran.
      passes: that ran.
      rows: operations shown.

    Returns:
      Milliseconds a pass by part of the step, and a text with the operations that took most.
      Numbers in names are left out, so that the layers' operations come together.
    """
    where = scopes(program)
    by_scope: dict[str, float] = collections.defaultdict(float)
    by_name: dict[tuple[str, str, str], list[float]] = collections.defaultdict(list)
    for name, operation, ns in found:
        scope = where.get(operation or name, "?")
        by_scope[scope] += ns / 1e6 / passes
        plain = [_NUMBERS.sub("", part)[:70] for part in (name, operation)]
        by_name[plain[0], plain[1], scope].append(ns / 1e6)
    total = sum(by_scope.values())
    lines = [f"{total:.3f} ms a pass: "]
    lines[0] += ", ".join(f"{k} {v:.3f}" for k, v in sorted(by_scope.items(), key=lambda x: -x[1]))
    lines.append(f"{'ms a pass':>10} {'share':>6} {'times':>7} {'part':<10} kernel; operation")
    for (name, operation, scope), times in sorted(by_name.items(), key=lambda x: -sum(x[1]))[:rows]:
        each = sum(times) / passes
        lines.append(
            f"{each:>10.4f} {each / total:>6.1%} {len(times) / passes:>7.1f} {scope:<10} "
            f"{name}" + (f"; {operation}" if operation and operation != name else "")
        )
    return dict(by_scope), "\n".join(lines)
