"""What the text of a compiled program says: its collectives, its loops, what it donates.

The format is XLA's own (https://openxla.org/xla/operation_semantics); of it we read the
computations, who calls whom, and the lines of collectives:

    %x = bf16[8,768]{1,0} all-reduce(%y), channel_id=3, replica_groups=[2,4]<=[8], …

An operation is inside a loop if a loop's body or condition reaches its computation.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(pred|[a-z]+\d+[a-z\d]*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_ONE = re.compile(
    r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_MANY = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" \{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{.*?\})\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: all-reduce, all-gather, …
      shapes: of its result's arrays on one device, as (dtype, dimensions).
      bytes: of its result.
      in_loop: it sits inside a loop.
      scope: where in our code, from the compiler's metadata.
      groups: partitions that exchange with each other; None where the text is not understood.
        One group () stands for everybody.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int
    in_loop: bool
    scope: str
    groups: tuple[tuple[int, ...], ...] | None

    def axes(self, sizes: Mapping[str, int]) -> tuple[str, ...] | None:
        """Mesh axes that it crosses.

        Args:
          sizes: axis -> devices along it, in the order of the mesh.

        Returns:
          The names; None where the groups are not understood.
        """
        if self.groups is None:
            return None
        crossed = set()
        for group in self.groups:
            members = group or tuple(range(math.prod(sizes.values())))
            places = np.unravel_index(np.asarray(members), tuple(sizes.values()))
            crossed |= {a for a, p in zip(sizes, places, strict=True) if np.ptp(p) > 0}
        return tuple(a for a in sizes if a in crossed)


def item_size(dtype: str) -> float:
    """Bytes of an element; `pred` is a byte."""
    bits = _BITS.search(dtype)
    return int(bits.group()) / 8 if bits else 1


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays of a type, as (dtype, dimensions)."""
    return [
        (kind, tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in _ARRAY.findall(text)
    ]


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(n) for n in (text or "").split(",") if n.strip())


def _groups(line: str) -> tuple[tuple[int, ...], ...] | None:
    """Who exchanges with whom, in any of the notations."""
    if found := _LISTED.search(line) or _PAIRS.search(line):
        return tuple(_numbers(g) for g in re.findall(r"\{([^{}]*)\}", found.group(1)))
    if "replica_groups={}" in line:
        return ((),)
    if found := _IOTA.search(line):
        shape, source, order = (_numbers(g) for g in found.groups())
        ids = np.arange(math.prod(source)).reshape(source)
        ids = ids.transpose(order) if order else ids
        return tuple(map(tuple, ids.reshape(shape).tolist()))
    if found := _MESH.search(line):
        mesh, source, order, axes = found.groups()
        names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", mesh), strict=True)
        chosen = re.findall(r"'(\w+)'(:?)", axes)
        if any(part for _, part in chosen):  # a part of an axis
            return None
        ids = np.arange(math.prod(map(int, sizes)))
        if source:
            ids = ids.reshape(_numbers(source))
            ids = ids.transpose(_numbers(order)) if order else ids
        ids = ids.reshape([int(n) for n in sizes])
        inside = [names.index(name) for name, _ in chosen]
        outside = [i for i in range(ids.ndim) if i not in inside]
        width = math.prod(ids.shape[i] for i in inside)
        return tuple(map(tuple, ids.transpose(outside + inside).reshape(-1, width).tolist()))
    return None


def _computations(lines: Sequence[str]) -> tuple[dict[str, set[str]], set[str], list[str]]:
    """Callees of each computation, the loops' bodies and conditions, each line's computation."""
    calls: dict[str, set[str]] = {}
    loops: set[str] = set()
    owners, owner = [], ""
    for line in lines:
        if header := _HEADER.match(line):
            owner = header.group(1)
        owners.append(owner)
        if not line.startswith(" "):
            continue
        callees = calls.setdefault(owner, set())
        for role, name in _ONE.findall(line):
            callees.add(name)
            if role in ("body", "condition"):
                loops.add(name)
        for names in _MANY.findall(line):
            callees |= {n.strip().lstrip("%") for n in names.split(",") if n.strip()}
    return calls, loops, owners


def read_collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program's text.

    What the compiler repeats for the stages of an asynchronous exchange counts once.
    """
    lines = text.splitlines()
    calls, loops, owners = _computations(lines)
    inside, waiting = set(), list(loops)
    while waiting:
        if (name := waiting.pop()) not in inside:
            inside.add(name)
            waiting += calls.get(name, ())
    found, channels = [], set()
    for line, owner in zip(lines, owners, strict=True):
        if not (match := _COLLECTIVE.search(line)):
            continue
        kind, shapes = match.group(2), arrays(match.group(1))
        if channel := re.search(r"channel_id=(\d+)", line):
            key = kind, channel.group(1)
            if key in channels:
                continue
            channels.add(key)
        if match.group(3) and kind in ("all-gather", "collective-permute", "reduce-scatter"):
            # (operands, results, and what the runtime needs)
            shapes = [s for s in shapes if s != ("u32", ())]
            shapes = shapes[len(shapes) // 2 :]
        scope = re.search(r'op_name="([^"]*)"', line)
        size = sum(item_size(dtype) * math.prod(dims) for dtype, dims in shapes)
        found.append(
            Collective(
                kind,
                tuple(shapes),
                int(size),
                owner in inside,
                scope.group(1) if scope else "",
                _groups(line),
            )
        )
    return found


def loop_depths(text: str) -> list[int]:
    """How many loops each line of a compiled program's text sits in, the fewest if several ways.

    Returns:
      One number per line; 0 outside every loop, and in what nobody calls.
    """
    lines = text.splitlines()
    calls, loops, owners = _computations(lines)
    called = set().union(*calls.values()) if calls else set()
    depth = {name: 0 for name in calls if name not in called}
    waiting = list(depth)
    while waiting:
        name = waiting.pop(0)
        for callee in calls.get(name, ()):
            reached = depth[name] + (callee in loops)
            if reached < depth.get(callee, reached + 1):
                depth[callee] = reached
                waiting.append(callee)
    return [depth.get(owner, 0) for owner in owners]


def partitions(text: str) -> int:
    """Devices that the program runs on together."""
    found = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return int(found.group(1)) if found else 1


def donated(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arguments whose memory the results take over, as (dtype, dimensions on a device)."""
    header = text.partition("\n")[0]
    _, _, layout = header.partition("entry_computation_layout={(")
    arguments = arrays(layout.partition(")->")[0])
    _, _, aliases = header.partition("input_output_alias={")
    taken = re.findall(r"\}: \((\d+), \{\}, (?:may|must)-alias\)", aliases)
    return [arguments[int(i)] for i in taken]
