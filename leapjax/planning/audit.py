"""What a compiled decode moves, loop by loop, beside what it has to move.

    decode loop ─┬─ window pass    a loop over layers, the window's columns of every row
                 ├─ refresh pass   a loop over layers, all columns of the rows that wait
                 └─ besides        head, proposal, policy, writes
    outside the loop               once a chunk of iterations

Bytes are counted in the program's text (`traffic`) and multiplied by the loops' trip counts. A loop
whose trip count depends on data counts as one turn. Names of passes come from our own scopes in
the compiler's metadata, or else from the shapes of what a loop computes.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from leapjax.planning import collectives, hlo
from leapjax.planning.need import BESIDES, FULL, REFRESH, WINDOW, Expected, Need, Passes
from leapjax.planning.traffic import moves_only, traffic

_NAMES = (WINDOW, REFRESH, FULL)
# Parts of a scope that say nothing: JAX's own names of loops and calls.
_NOISE = re.compile(r"^(jit\(run\)|while|body|cond|closed_call|branch_\d+_fun|checkpoint)$")
_FOLLOWED = {
    "bitcast", "copy", "copy-start", "copy-done", "transpose", "reshape", "slice", "slice-start",
    "slice-done", "dynamic-slice", "opt-barrier", "async-done", "async-update",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction in its place, all its runs in one pass together.

    Attributes:
      name: the compiler's.
      opcode: the compiler's.
      scope: where in our code.
      loops: the loops that it sits in below the pass, outermost first.
      times: runs in one pass, or turn.
      read: bytes, of all runs.
      written: bytes, of all runs.
      wasted: of them, those that are not weights or keys and values for the first time.
      cycles: the compiler's own estimate, of all runs.
      of: arguments of the program that it reads.
      moves_only: it computes nothing.
      result: its type.
    """

    name: str
    opcode: str
    scope: str
    loops: tuple[str, ...]
    times: int
    read: int
    written: int
    wasted: int
    cycles: int
    of: tuple[str, ...]
    moves_only: bool
    result: str


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A collective in its place.

    Attributes:
      what: the collective; its `bytes` are those of one run.
      times: runs in one pass, or turn.
    """

    what: collectives.Collective
    times: int


@dataclasses.dataclass(frozen=True)
class Pass:
    """A part of the program and all that runs in it.

    Attributes:
      name: as in `need`, or `outside`.
      turns: None where a loop of an unknown number of turns is inside, or is the pass: the
        figures are those of one turn. Else 1.
      operations: those that move bytes, the most wasteful first.
      exchanges: collectives.
      need: bytes a device that it has to move; None where nothing says it.
      cycles: the compiler's own estimate, of everything in it.
    """

    name: str
    turns: int | None
    operations: tuple[Operation, ...]
    exchanges: tuple[Exchange, ...]
    need: Need | None
    cycles: int

    @property
    def read(self) -> int:
        """Bytes."""
        return sum(o.read for o in self.operations)

    @property
    def written(self) -> int:
        """Bytes."""
        return sum(o.written for o in self.operations)

    @property
    def moved(self) -> int:
        """Bytes."""
        return self.read + self.written

    @property
    def copies(self) -> list[Operation]:
        """Operations that compute nothing and write to memory, the largest first."""
        found = [o for o in self.operations if o.moves_only and o.written]
        return sorted(found, key=lambda o: -o.written)


@dataclasses.dataclass(frozen=True)
class Audit:
    """A program's account.

    Attributes:
      passes: by name; `besides` is among them.
      outside: what runs once a chunk, around the decode loop.
    """

    passes: dict[str, Pass]
    outside: Pass

    @property
    def step(self) -> tuple[int, float | None]:
        """Bytes moved and needed in an iteration without a refresh: the pass, and the rest."""
        names = [n for n in (WINDOW, FULL, BESIDES) if n in self.passes]
        needs = [self.passes[n].need for n in names]
        moved = sum(self.passes[n].moved for n in names)
        return moved, None if None in needs else sum(n.total for n in needs if n)


@dataclasses.dataclass(frozen=True)
class _Site:
    """An instruction on the way that the program's control takes."""

    computation: hlo.Computation
    instruction: hlo.Instruction
    loops: tuple[str, ...]
    times: int
    certain: bool
    apart: bool = False


def audit(text: str, expected: Passes | None = None) -> Audit:
    """Account for a compiled program.

    Args:
      text: as `jax.stages.Compiled.as_text()` gives it.
      expected: what the decode needs (`need.passes`); without it passes are known by their scopes
        only, and nothing says what they need.
    """
    return _Auditor(hlo.parse(text), expected).run()


class _Auditor:
    def __init__(self, module: hlo.Module, expected: Passes | None):
        self.module, self.expected = module, expected
        # Where a loop's body or a called computation gets its values from.
        self.callers: dict[str, tuple[hlo.Computation, hlo.Instruction]] = {}
        for computation, instruction in module.everything():
            if instruction.opcode in ("while", "call"):
                for names in instruction.called.values():
                    self.callers |= {name: (computation, instruction) for name in names}

    def run(self) -> Audit:
        entry = self.module.computations[self.module.entry]
        loop = self._decode_loop(entry)
        body = self.module.computations[loop.called["body"][0]] if loop else entry
        parts: dict[str, list[_Site]] = defaultdict(list)
        for site in self._walk(body):
            top = site.loops[0] if site.loops else None
            parts[top or self._scoped([site]) or BESIDES].append(site)
        named: dict[str, list[_Site]] = defaultdict(list)
        for top, sites in parts.items():
            known = top in _NAMES or top == BESIDES
            name = top if known else self._scoped(sites) or self._shaped(sites) or BESIDES
            named[name] += sites
        named.setdefault(BESIDES, [])
        passes = {n: self._pass(n, named[n]) for n in (*_NAMES, BESIDES) if n in named}
        outside = [s for s in self._walk(entry, skip=loop)] if loop else []
        return Audit(passes, self._pass("outside", outside))

    def _decode_loop(self, entry: hlo.Computation) -> hlo.Instruction | None:
        """The outermost loop that runs until rows are done: of unknown length, with most in it."""
        loops = [i for i in entry.instructions.values() if i.opcode == "while"]
        open_ended = [i for i in loops if self.module.trips(i) is None]

        def size(loop):
            return sum(1 for _ in self._walk(self.module.computations[loop.called["body"][0]]))

        return max(open_ended, key=size, default=None)

    def _walk(
        self,
        computation: hlo.Computation,
        loops: tuple[str, ...] = (),
        times: int = 1,
        certain: bool = True,
        skip: hlo.Instruction | None = None,
    ) -> Iterator[_Site]:
        """Everything that runs below a computation, in the schedule's order."""
        for instruction in computation.instructions.values():
            if instruction is skip:
                continue
            called = instruction.called
            if instruction.opcode == "while":
                trips = self.module.trips(instruction)
                inside = (*loops, instruction.name)
                for role in ("condition", "body"):
                    for name in called.get(role, ()):
                        yield from self._walk(
                            self.module.computations[name],
                            inside,
                            times * (1 if trips is None else trips),
                            certain and trips is not None,
                        )
            elif instruction.opcode == "call":
                for name in called.get("to_apply", ()):
                    below = self.module.computations[name]
                    yield from self._walk(below, loops, times, certain)
            elif instruction.opcode == "conditional":
                names = [
                    n
                    for role in ("branch_computations", "true_computation", "false_computation")
                    for n in called.get(role, ())
                ]
                ways = [
                    list(self._walk(self.module.computations[n], loops, times, certain))
                    for n in names
                ]
                yield from max(ways, key=self._moved, default=[])
            else:
                yield _Site(computation, instruction, loops, times, certain)

    def _moved(self, sites: list[_Site]) -> int:
        found = [(traffic(self.module, s.computation, s.instruction), s.times) for s in sites]
        return sum((t.read + t.written) * n for t, n in found)

    def _scoped(self, sites: list[_Site]) -> str | None:
        """The pass that our scopes name most often."""
        count = dict.fromkeys(_NAMES, 0)
        for site in sites:
            for name in _NAMES:
                count[name] += f"/{name}/" in site.instruction.scope
        best = max(_NAMES, key=lambda name: count[name])
        return best if count[best] else None

    def _shaped(self, sites: list[_Site]) -> str | None:
        """The pass whose rows and columns the most activations have."""
        if self.expected is None:
            return None
        count = dict.fromkeys(self.expected.passes, 0)
        for site in sites:
            arrays = list(site.instruction.arrays)
            for name in site.instruction.called.get("calls", ()):
                inner = self.module.computations[name].instructions.values()
                arrays += [a for i in inner for a in i.arrays]
            for name, expected in self.expected.passes.items():
                count[name] += sum(_fits(a, expected, self.expected.widths) for a in arrays)
        best = max(count, key=lambda name: count[name])
        return best if count[best] else None

    def _pass(self, name: str, sites: list[_Site]) -> Pass:
        need = None
        if self.expected is not None and name != "outside":
            found = self.expected.passes.get(name)
            need = found.need if found else self.expected.besides
        budget, writable = {}, 0.0
        if need is not None and name == REFRESH:
            writable = need.cache
        operations, exchanges = [], []
        for site in sites:
            if collectives.kind_of(site.instruction):
                exchanges.append(
                    Exchange(
                        collectives.describe(
                            site.computation, site.instruction, name != "outside", site.apart
                        ),
                        site.times,
                    )
                )
            moved = traffic(self.module, site.computation, site.instruction)
            if not moved.read + moved.written:
                continue
            wasted, of = (moved.read + moved.written) * site.times, []
            for operand, bytes in moved.reads.items():
                argument = self._argument(site.computation, operand)
                if argument is None:
                    continue
                label = argument.scope or argument.name
                of.append(label)
                if "cache" in label and name == REFRESH:
                    continue
                left = budget.setdefault(label, sum(a.padded for a in argument.arrays))
                useful = min(left, bytes * site.times)
                budget[label] -= useful
                wasted -= useful
            if writable and self._writes_cache(site):
                useful = min(writable, moved.written * site.times)
                writable -= useful
                wasted -= int(useful)
            operations.append(self._operation(site, moved, int(wasted), tuple(of)))
        operations.sort(key=lambda o: (-o.wasted, -o.read - o.written))
        return Pass(
            name=name,
            turns=1 if all(s.certain for s in sites) else None,
            operations=tuple(operations),
            exchanges=tuple(exchanges),
            need=need,
            cycles=sum(s.instruction.cycles * s.times for s in sites),
        )

    def _operation(self, site: _Site, moved: Any, wasted: int, of: tuple[str, ...]) -> Operation:
        instruction = site.instruction
        shapes = ", ".join(
            f"{a.dtype}[{','.join(map(str, a.dims))}]"
            for a in collectives.result(site.computation, instruction)
        )
        return Operation(
            name=instruction.name,
            opcode=instruction.opcode,
            scope=short(instruction.scope),
            loops=site.loops,
            times=site.times,
            read=moved.read * site.times,
            written=moved.written * site.times,
            wasted=wasted,
            cycles=instruction.cycles * site.times,
            of=of,
            moves_only=moves_only(self.module, instruction),
            result=shapes,
        )

    def _writes_cache(self, site: _Site) -> bool:
        """Whether an instruction's result is as large as the cache, and it takes the cache."""
        for name in site.instruction.operands:
            argument = self._argument(site.computation, name)
            if argument is not None and "cache" in argument.scope:
                return any(a.size == argument.arrays[0].size for a in site.instruction.arrays)
        return False

    def _argument(self, computation: hlo.Computation, name: str) -> hlo.Instruction | None:
        """The program's argument that a value is, a part of, or a copy of."""
        path: list[int] = []
        for _ in range(1000):
            value = computation.instructions.get(name)
            if value is None:
                return None
            if value.opcode == "parameter":
                if computation.name == self.module.entry:
                    return value
                if computation.name not in self.callers:
                    return None
                number = int(value.inner)
                computation, caller = self.callers[computation.name]
                name = caller.operands[number]
            elif value.opcode == "get-tuple-element":
                found = re.search(r"index=(\d+)", value.attributes)
                if found is None:
                    return None
                path.append(int(found.group(1)))
                name = value.operands[0]
            elif value.opcode == "tuple" and path:
                name = value.operands[path.pop()]
            elif value.opcode == "while" or value.opcode in _FOLLOWED:
                name = value.operands[0]
            else:
                return None
        return None


def _fits(array: hlo.Array, expected: Expected, widths: frozenset[int]) -> bool:
    """Whether an array holds a number a unit for each position that a pass computes."""
    if not array.dims or array.dims[-1] not in widths:
        return False
    before = tuple(n for n in array.dims[:-1] if n > 1)
    rows, columns = expected.rows, expected.columns
    return before in ((rows, columns), (rows * columns,)) or (rows == 1 and before == (columns,))


def short(scope: str) -> str:
    """A scope without what JAX adds.

    >>> short("jit(run)/while/body/window pass/while/body/closed_call/mlp/dot_general")
    'window pass/mlp/dot_general'
    """
    return "/".join(part for part in scope.split("/") if not _NOISE.match(part))
