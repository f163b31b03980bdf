"""The text of a compiled program as computations and instructions, read once.

The format is XLA's own (https://openxla.org/xla/operation_semantics). A module is a header, then
computations of one instruction a line:

    HloModule jit_run, input_output_alias={…}, entry_computation_layout={…}, num_partitions=8
    %body (p: (s32[], bf16[8,768])) -> (s32[], bf16[8,768]) {
      %x = bf16[8,768]{1,0:T(8,128)(2,1)S(1)} all-reduce(%y), channel_id=3, metadata={op_name="…"}
      ROOT %t = (s32[], bf16[8,768]{1,0}) tuple(%i, %x)
    }

A layout `{1,0:T(8,128)(2,1)S(1)}` lists the dimensions from the fastest varying one on, then the
tiles that the array is padded to, then the memory space: 0, which is not printed, is the device's
main memory (HBM); every other space is on the chip or the host.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z\d]*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_BITS = re.compile(r"\d+")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_MANY = re.compile(r"(branch_computations|called_computations)=\{([^}]*)\}")
# What begins an exchange that fusions carry out in stages, and what ends it, calls this.
STAGED, STAGED_END = "AsyncCollectiveStart", "AsyncCollectiveDone"
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_CYCLES = 2**62


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of one array."""

    dtype: str  # as XLA writes it
    dims: tuple[int, ...]  # sizes of its dimensions on one device
    layout: str = ""  # what stands between its braces; empty if nothing does

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def space(self) -> int:
        """Memory space; 0 is the device's main memory."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found.group(1)) if found else 0

    @property
    def bytes(self) -> int:
        """Bytes of its elements, without padding."""
        return math.ceil(self.size * item_size(self.dtype))

    @property
    def padded(self) -> int:
        """Bytes that it takes in memory, the last tiles padded.

        >>> Array("bf16", (7, 100), "1,0:T(8,128)(2,1)").padded
        2048
        """
        order, _, rest = self.layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", rest)
        if tile is None:
            return self.bytes
        sizes = [self.dims[int(i)] for i in order.split(",") if i]  # the fastest varying first
        for i, n in enumerate(reversed([int(n) for n in tile.group(1).split(",")])):
            if i == len(sizes):
                sizes.append(1)
            sizes[i] = -(-sizes[i] // n) * n
        return math.ceil(math.prod(sizes) * item_size(self.dtype))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str  # unique in its computation
    opcode: str  # as XLA calls it
    arrays: tuple[Array, ...]  # of its result, those of tuples one after another
    operands: tuple[str, ...]  # names of instructions of the same computation
    inner: str  # the text between the operation's parentheses
    attributes: str  # the text behind them
    root: bool  # its value is the computation's

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Computations that it calls, by their role: body, condition, calls and so on."""
        found = {role: (name,) for role, name in _CALLED.findall(self.attributes)}
        for role, names in _MANY.findall(self.attributes):
            found[role] = tuple(n.strip().lstrip("%") for n in names.split(",") if n.strip())
        return found

    @property
    def scope(self) -> str:
        """Where in our code it comes from, as the compiler's metadata say; may be empty."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1).replace("\\'", "'") if found else ""

    @property
    def index(self) -> int | None:
        """Of a `get-tuple-element`, which element."""
        found = re.search(r"index=(\d+)", self.attributes)
        return int(found.group(1)) if found and self.opcode == "get-tuple-element" else None

    @property
    def target(self) -> str:
        """Of a `custom-call`, what it calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def channel(self) -> str:
        """Of a collective, the number that its stages share; empty if it has none."""
        found = re.search(r"\bchannel_id=(\d+)", self.attributes)
        return found.group(1) if found else ""

    @property
    def cycles(self) -> int:
        """The compiler's own estimate; 0 where it makes none, or writes the largest integer."""
        found = _CYCLES.search(self.attributes)
        cycles = int(found.group(1)) if found else 0
        return cycles if cycles < _NO_CYCLES else 0


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program."""

    name: str  # unique in the module
    # by name, in the order of the text, which is the schedule's
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value it returns; the last one if none is marked."""
        marked = [i for i in self.instructions.values() if i.root]
        return marked[-1] if marked else list(self.instructions.values())[-1]

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Its parameters by number."""
        found = (i for i in self.instructions.values() if i.opcode == "parameter")
        return {int(i.inner): i for i in found}

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """Who uses a value, and as which operand."""
        out: dict[str, list[tuple[Instruction, int]]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for place, name in enumerate(instruction.operands):
                if name in out:
                    out[name].append((instruction, place))
        return out


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    header: str  # its first line
    computations: dict[str, Computation]  # by name, in the order of the text
    entry: str  # name of the computation that runs

    @property
    def partitions(self) -> int:
        """Devices that the program runs on together."""
        found = re.search(r"num_partitions=(\d+)", self.header)
        return int(found.group(1)) if found else 1

    @property
    def donated(self) -> list[tuple[str, tuple[int, ...]]]:
        """Arguments whose memory the results take over, as (dtype, dimensions on a device)."""
        _, _, layout = self.header.partition("entry_computation_layout={(")
        arguments = arrays(layout.partition(")->")[0])
        _, _, aliases = self.header.partition("input_output_alias={")
        taken = re.findall(r"\}: \((\d+), \{\}, (?:may|must)-alias\)", aliases)
        return [(arguments[int(i)].dtype, arguments[int(i)].dims) for i in taken]

    @functools.cached_property
    def depths(self) -> dict[str, int]:
        """Loops that each computation sits in, the fewest if several ways lead to it.

        0 outside every loop, and for what nobody calls.
        """
        calls = {
            name: [
                (callee, role in ("body", "condition"))
                for i in computation.instructions.values()
                for role, callees in i.called.items()
                for callee in callees
            ]
            for name, computation in self.computations.items()
        }
        called = {callee for callees in calls.values() for callee, _ in callees}
        depth = {name: 0 for name in calls if name not in called}
        waiting = list(depth)
        while waiting:
            name = waiting.pop(0)
            for callee, loop in calls.get(name, ()):
                reached = depth[name] + loop
                if reached < depth.get(callee, reached + 1):
                    depth[callee] = reached
                    waiting.append(callee)
        return {name: depth.get(name, 0) for name in calls}

    def everything(self) -> Iterator[tuple[Computation, Instruction]]:
        """All instructions, each with its computation, in the order of the text."""
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                yield computation, instruction

    @functools.cached_property
    def callers(self) -> dict[str, tuple[Computation, Instruction]]:
        """Where each loop's body and condition, each branch and each called function runs."""
        return {
            name: (computation, instruction)
            for computation, instruction in self.everything()
            if instruction.opcode in ("while", "call", "conditional")
            for names in instruction.called.values()
            for name in names
        }

    @functools.cached_property
    def staged(self) -> frozenset[str]:
        """Channels of exchanges that fusions carry out in stages, next to what they compute."""
        return frozenset(
            channel
            for computation in self.computations.values()
            if any(i.target == STAGED for i in computation.instructions.values())
            for i in computation.instructions.values()
            if (channel := i.channel)
        )

    @functools.cached_property
    def apart(self) -> frozenset[str]:
        """Computations that run while others do: those that an `async-start` calls."""
        return frozenset(
            name
            for _, instruction in self.everything()
            if instruction.opcode == "async-start"
            for names in instruction.called.values()
            for name in names
        )


def item_size(dtype: str) -> float:
    """Bytes of an element; `pred` is a byte."""
    bits = _BITS.search(dtype)
    return int(bits.group()) / 8 if bits else 1


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type.

    >>> arrays("(s32[]{:T(128)}, bf16[8,768]{1,0:T(8,128)(2,1)S(1)})")[1].dims
    (8, 768)
    """
    return tuple(
        Array(kind, tuple(int(n.strip("<= ")) for n in sizes.split(",") if n.strip()), layout)
        for kind, sizes, layout in _ARRAY.findall(text)
    )


@functools.lru_cache(maxsize=2)
def parse(text: str) -> Module:
    """Read a compiled program. Raises ValueError: the text has no computation."""
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", text.splitlines()
    for line in lines:
        if line.startswith(" "):
            if name and (found := _instruction(line)):
                computations[name].instructions[found.name] = found
        elif header := _HEADER.match(line):
            name = header.group(2)
            computations[name] = Computation(name, {})
            entry = name if header.group(1) else entry
    if not computations:
        raise ValueError("the text of a compiled program has no computation")
    return Module(lines[0], computations, entry or name)


def _instruction(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if start is None:
        return None
    end = _closing(line, start.end()) if line[start.end()] == "(" else start.end()
    opcode = _OPCODE.search(line, end)
    if opcode is None:
        return None
    close = _closing(line, opcode.end() - 1)
    inner = line[opcode.end() : close - 1]
    return Instruction(
        name=start.group(2),
        opcode=opcode.group(1),
        arrays=arrays(line[start.end() : opcode.start()]),
        operands=() if opcode.group(1) == "constant" else tuple(_OPERAND.findall(inner)),
        inner=inner,
        attributes=line[close:],
        root=bool(start.group(1)),
    )


def _closing(line: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if depth == 0:
            return place + 1
    return len(line)
