"""The bytes that a compiled decode moves, loop by loop, next to those that it has to move.

    decode loop ─┬─ window pass    a loop over layers, the window's columns of every row
                 ├─ refresh pass   a loop over layers, all columns of the rows that wait
                 ├─ storing pass   a loop over layers, two blocks of the rows that wait
                 └─ besides        head, proposal, policy, writes
    outside the loop               once a chunk of iterations

Bytes are counted in the program's text (`traffic`) and multiplied by the loops' trip counts. A loop
whose trip count depends on data counts once. Names of passes come from leapjax's scopes in the
compiler's metadata, or else from the shapes of what a loop computes.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from leapjax.planning import collectives, hlo
from leapjax.planning.grouped import is_grouped
from leapjax.planning.loops import Site, argument, trips, walk
from leapjax.planning.need import (
    BESIDES,
    FULL,
    PREFILL,
    REFRESH,
    STORE,
    WINDOW,
    WRITE,
    Need,
    Passes,
)
from leapjax.planning.traffic import Traffic, moves_only, traffic

OUTSIDE = "outside"
AROUND = "around a prefill"  # a row is taken out of the cache and put back
_NAMES = (WINDOW, REFRESH, STORE, FULL, PREFILL, WRITE)
_CACHE = "cache"  # in the names of the arguments that are keys and values
# Parts of a scope that say nothing: JAX's own names of loops and calls.
_NOISE = re.compile(r"^(jit\(run\)|while|body|cond|closed_call|branch_\d+_fun|checkpoint)$")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction in its place, all its runs in one pass together."""

    name: str  # the compiler's
    opcode: str  # the compiler's
    scope: str  # where in our code
    # the loops and conditionals around it inside the decode loop, outermost first
    inside: tuple[str, ...]
    times: int  # runs in one pass, or turn
    read: int  # bytes, of all runs
    written: int  # bytes, of all runs
    wasted: int  # of them, those that are not weights or keys and values for the first time
    cycles: int  # the compiler's own estimate, of all runs
    of: tuple[str, ...]  # arguments of the program that it reads
    moves_only: bool  # it computes nothing
    result: str  # its type
    exact: bool  # not so for a Pallas call whose copies depend on data, or are the kernel's own


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A collective in its place."""

    what: collectives.Collective  # the collective; its `bytes` are those of one run
    times: int  # runs in one pass, or turn


@dataclasses.dataclass(frozen=True)
class Pass:
    """A part of the program and all that runs in it."""

    name: str  # as in `need`, or `outside`
    # None where a loop of an unknown number of turns is inside, or is the pass: the figures are
    # those of one turn. Else 1.
    turns: int | None
    operations: tuple[Operation, ...]  # those that move bytes, the most wasteful first
    exchanges: tuple[Exchange, ...]
    need: Need | None  # bytes a device that it has to move; None where nothing says it
    cycles: int  # the compiler's own estimate, of everything in it but collectives and Pallas calls
    grouped: int = 0  # bytes that grouped products move, for which the compiler has no estimate

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
    """The account of a program, from `audit`."""

    passes: dict[str, Pass]  # by name; `besides` is among them
    outside: Pass  # what runs once a chunk, around the decode loop

    @property
    def step(self) -> tuple[int, float | None]:
        """Bytes moved and needed in an iteration without a refresh: the pass and the rest."""
        names = [n for n in (WINDOW, FULL, BESIDES) if n in self.passes]
        needs = [self.passes[n].need for n in names]
        moved = sum(self.passes[n].moved for n in names)
        return moved, None if None in needs else sum(n.total for n in needs if n)


def audit(text: str, expected: Passes | None = None) -> Audit:
    """Account for the bytes that a compiled program moves.

    `expected`: the bytes that the decode needs (`need.passes`). Without it, passes are known only
    by their scopes, and their needs are unknown.
    """
    module = hlo.parse(text)

    def moved(site: Site) -> float:
        found = traffic(module, site.computation, site.instruction)
        return (found.read + found.written) * site.times

    entry = module.computations[module.entry]
    loops = [i for i in entry.instructions.values() if i.opcode == "while"]
    bodies = {
        loop.name: list(walk(module, module.computations[loop.called["body"][0]], moved))
        for loop in loops
        if trips(module, loop) is None
    }
    # The decode loop runs until rows are done. A program without one is a part of a decode.
    decode = max(bodies, key=lambda name: len(bodies[name]), default=None)
    loop = next((i for i in loops if i.name == decode), None)
    inside = bodies[decode] if decode else list(walk(module, entry, moved))
    outside = list(walk(module, entry, moved, skip=loop)) if loop else []
    parts = _divide(module, inside, expected)
    return Audit(
        {name: _account(module, name, sites, expected) for name, sites in parts.items()},
        _account(module, OUTSIDE, outside, expected),
    )


def _divide(
    module: hlo.Module, sites: list[Site], expected: Passes | None
) -> dict[str, list[Site]]:
    """The instructions of an iteration by the pass that they belong to."""
    groups: dict[str, list[Site]] = defaultdict(list)
    out: dict[str, list[Site]] = {name: [] for name in _NAMES}
    out[BESIDES] = []
    for site in sites:
        if site.inside:
            groups[site.inside[0]].append(site)
        else:
            out[_scoped([site]) or BESIDES].append(site)
    for inside in groups.values():
        out[_scoped(inside) or _shaped(module, inside, expected) or BESIDES] += inside
    return {name: found for name, found in out.items() if found or name == BESIDES}


def _scoped(sites: list[Site]) -> str | None:
    """The pass that our scopes name most often; of scopes in each other the inner one counts."""
    count: Counter[str] = Counter()
    for site in sites:
        named = [part for part in site.instruction.scope.split("/") if part in _NAMES]
        count.update(named[-1:])
    return max(count, key=lambda name: count[name], default=None)


def _shaped(module: hlo.Module, sites: list[Site], expected: Passes | None) -> str | None:
    """The pass whose rows and columns the most activations have."""
    count = dict.fromkeys(expected.passes, 0) if expected else {}
    for site in sites:
        arrays = list(site.instruction.arrays)
        for name in site.instruction.called.get("calls", ()):
            arrays += [a for i in module.computations[name].instructions.values() for a in i.arrays]
        for name in count:
            count[name] += sum(_fits(a, expected, name) for a in arrays if expected)
    best = max(count, key=lambda name: count[name], default=None)
    return best if best and count[best] else None


def _fits(array: hlo.Array, expected: Passes, name: str) -> bool:
    """Whether an array holds a vector of the model's for each position that a pass computes."""
    if not array.dims or array.dims[-1] not in expected.widths:
        return False
    before = tuple(n for n in array.dims[:-1] if n > 1)
    rows, columns = expected.passes[name].rows, expected.passes[name].columns
    return before in ((rows, columns), (rows * columns,)) or (rows == 1 and before == (columns,))


def _account(module: hlo.Module, name: str, sites: list[Site], expected: Passes | None) -> Pass:
    """Add up the instructions of a pass."""
    need = None
    if expected is not None and name in expected.passes:
        need = expected.passes[name].need
    elif expected is not None and name == BESIDES:
        need = expected.besides
    # What is left of each argument that has to be read, and of the cache that has to be written.
    unread: dict[str, float] = {}
    unwritten = need.cache if need is not None and name in (REFRESH, PREFILL) else 0.0
    operations, exchanges, product = [], [], 0
    routing = expected.passes[name].routing if expected and name in expected.passes else None
    for site in sites:
        exchanges += [
            Exchange(collectives.describe(module, computation, instruction), site.times)
            for computation, instruction in _exchanged(module, site)
        ]
        moved = traffic(module, site.computation, site.instruction, routing)
        if not moved.read + moved.written:
            continue
        product += (moved.read + moved.written) * site.times * is_grouped(site.instruction)
        useful, of = 0.0, []
        # Nothing is read as it has to be outside the loop, or where it is copied between passes.
        astray = name == OUTSIDE or (name == BESIDES and moves_only(module, site.instruction))
        for operand, bytes in moved.reads.items():
            source = argument(module, site.computation, operand)
            if source is None:
                continue
            of.append(source.scope or source.name)
            # A refresh overwrites the cache and does not attend to it.
            attends = name in (WINDOW, STORE, PREFILL)
            if not astray and (attends or need is None or _CACHE not in of[-1]):
                left = unread.setdefault(of[-1], sum(a.padded for a in source.arrays))
                unread[of[-1]] -= (part := min(left, bytes * site.times))
                useful += part
        if unwritten and _writes_cache(module, site):
            unwritten -= (part := min(unwritten, moved.written * site.times))
            useful += part
        operations.append(_operation(module, site, moved, int(useful), tuple(of)))
    operations.sort(key=lambda o: (-o.wasted, -o.read - o.written))
    return Pass(
        name=name,
        turns=1 if all(s.certain for s in sites) else None,
        operations=tuple(operations),
        exchanges=tuple(exchanges),
        need=need,
        cycles=sum(s.instruction.cycles * s.times for s in sites),
        grouped=product,
    )


def _operation(
    module: hlo.Module, site: Site, moved: Traffic, useful: int, of: tuple[str, ...]
) -> Operation:
    instruction = site.instruction
    return Operation(
        name=instruction.name,
        opcode=instruction.opcode,
        scope=short(instruction.scope),
        inside=site.inside,
        times=site.times,
        read=moved.read * site.times,
        written=moved.written * site.times,
        wasted=(moved.read + moved.written) * site.times - useful,
        cycles=instruction.cycles * site.times,
        of=of,
        moves_only=moves_only(module, instruction),
        result=", ".join(
            f"{a.dtype}[{','.join(map(str, a.dims))}]"
            for a in collectives.result(site.computation, instruction)
        ),
        exact=moved.exact,
    )


def _exchanged(module: hlo.Module, site: Site) -> Iterator[tuple[hlo.Computation, hlo.Instruction]]:
    """The collectives that an instruction is, or begins in a fusion or apart from others."""
    if collectives.kind_of(site.instruction):
        yield site.computation, site.instruction
    for name in site.instruction.called.get("calls", ()):
        inner = module.computations[name]
        begins = any(i.target == hlo.STAGED for i in inner.instructions.values())
        for instruction in inner.instructions.values():
            if instruction.channel in module.staged and not begins:
                continue
            yield from _exchanged(
                module, dataclasses.replace(site, computation=inner, instruction=instruction)
            )


def _writes_cache(module: hlo.Module, site: Site) -> bool:
    """Whether an instruction takes an array of the cache and yields one as large."""
    for name in site.instruction.operands:
        source = argument(module, site.computation, name)
        if source is not None and _CACHE in source.scope:
            return any(a.size == source.arrays[0].size for a in site.instruction.arrays)
    return False


def short(scope: str) -> str:
    """A scope without what JAX adds.

    >>> short("jit(run)/while/body/window pass/while/body/closed_call/mlp/dot_general")
    'window pass/mlp/dot_general'
    """
    return "/".join(part for part in scope.split("/") if not _NOISE.match(part))
