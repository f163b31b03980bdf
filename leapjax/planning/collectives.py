"""The collectives of a compiled program: what is exchanged, between whom, and whether in a loop.

    %x = bf16[8,768]{1,0} all-reduce(%y), channel_id=3, replica_groups=[2,4]<=[8], …

An exchange in two parts, `all-gather-start` and `all-gather-done`, lets other work run in between;
so does one in stages, each inside a fusion that computes something else.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from leapjax.planning.hlo import Array, Computation, Instruction, Module

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" \{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{.*?\})\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program."""

    kind: str  # all-reduce, all-gather, …
    # of its result's arrays on one device, as (dtype, dimensions)
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int  # of its result
    in_loop: bool  # it sits inside a loop
    scope: str  # where in our code, from the compiler's metadata
    # partitions that exchange with each other; None where the text is not understood. One group ()
    # stands for everybody.
    groups: tuple[tuple[int, ...], ...] | None
    asynchronous: bool = False  # other work may run while it does

    def axes(self, sizes: Mapping[str, int]) -> tuple[str, ...] | None:
        """Mesh axes that it crosses.

        `sizes`: axis -> devices along it, in the order of the mesh. Returns the names; None where
        the groups are not understood.
        """
        if self.groups is None:
            return None
        crossed = set()
        for group in self.groups:
            members = group or tuple(range(math.prod(sizes.values())))
            places = np.unravel_index(np.asarray(members), tuple(sizes.values()))
            crossed |= {a for a, p in zip(sizes, places, strict=True) if np.ptp(p) > 0}
        return tuple(a for a in sizes if a in crossed)


def kind_of(instruction: Instruction) -> str | None:
    """The kind of an instruction that is a collective or begins one, else None."""
    name = instruction.opcode.removesuffix("-start")
    return name if name in KINDS else None


def result(computation: Computation, instruction: Instruction) -> tuple[Array, ...]:
    """The arrays that an instruction yields; for the first part of two, those of the second.

    The first part's own type lists operands and what the runtime needs, too.
    """
    base = instruction.opcode.removesuffix("-start")
    if base == instruction.opcode:
        return instruction.arrays
    waiting = [instruction.name]
    while waiting:
        for user, _ in computation.users[waiting.pop()]:
            if user.opcode == f"{base}-done":
                return user.arrays
            if user.opcode == f"{base}-update":
                waiting.append(user.name)
    if base == "all-reduce":
        return instruction.arrays
    found = [a for a in instruction.arrays if (a.dtype, a.dims) not in (("u32", ()), ("s32", ()))]
    return tuple(found[len(found) // 2 :])


def read(module: Module) -> list[Collective]:
    """The collectives of a compiled program.

    What the compiler repeats for the stages of an asynchronous exchange counts once.
    """
    found, channels = [], set()
    for computation, instruction in module.everything():
        if (kind := kind_of(instruction)) is None:
            continue
        if channel := instruction.channel:
            if (kind, channel) in channels:
                continue
            channels.add((kind, channel))
        found.append(describe(module, computation, instruction))
    return found


def describe(module: Module, computation: Computation, instruction: Instruction) -> Collective:
    """A collective from its instruction. `instruction`: of an opcode that `kind_of` knows."""
    arrays, kind = result(computation, instruction), instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and (part := _scattered(computation, instruction)):
        arrays, kind = part.arrays, "reduce-scatter"
    return Collective(
        kind=kind,
        shapes=tuple((a.dtype, a.dims) for a in arrays),
        bytes=sum(a.bytes for a in arrays),
        in_loop=module.depths[computation.name] > 0,
        scope=instruction.scope,
        groups=_groups(instruction.attributes),
        asynchronous=instruction.opcode.endswith("-start")
        or instruction.channel in module.staged
        or computation.name in module.apart,
    )


def _scattered(computation: Computation, summed: Instruction) -> Instruction | None:
    """What is kept of a sum of which each device keeps a part: a fusion that ends in a slice."""
    users = [user for user, _ in computation.users[summed.name]]
    if len(users) == 1 and users[0].opcode == "dynamic-slice" and users[0].root:
        return users[0]
    return None


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
