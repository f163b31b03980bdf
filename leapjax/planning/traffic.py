"""Bytes that one instruction of a compiled program moves to and from main memory (HBM).

    read      of every operand in HBM what the instruction uses: of an array that it only slices or
              gathers from, those elements
    written   the result, if it is in HBM; of an update in place, only what is updated
    not HBM   arrays in another memory space, `S(1)` is the chip's own memory; single numbers
    once      an asynchronous copy, slice or exchange counts where it starts, not where it ends

A fusion's operands and results go through HBM, what it computes in between does not. An operand
counts once, however often the fusion's own loop reads it. A Pallas call is counted by its blocks
(`pallas`), a grouped product by the experts that its tokens touch (`grouped`). Arrays count with
the padding of their tiles.
"""

import dataclasses
import math

from leapjax.planning import grouped, pallas
from leapjax.planning.collectives import kind_of, result
from leapjax.planning.hlo import STAGED, STAGED_END, Array, Computation, Instruction, Module

# They move nothing, or what they call does.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "after-all",
    "async-update",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "add-dependency",
    "domain",
}
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
_SLICES = {"slice", "dynamic-slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is the update
# One element of the result needs one of each operand of the same size.
_ELEMENTWISE = {
    "bitcast", "bitcast-convert", "convert", "copy", "reshape", "transpose", "reverse", "abs",
    "add", "and", "clamp", "compare", "cosine", "divide", "exponential", "floor", "log", "maximum",
    "minimum", "multiply", "negate", "not", "or", "power", "rsqrt", "select", "sign", "sine",
    "sqrt", "subtract", "tanh", "xor",
}  # fmt: skip
# They only bring data to another place or order.
_MOVES = {
    "bitcast", "concatenate", "copy", "dynamic-slice", "dynamic-update-slice", "fusion", "pad",
    "parameter", "reshape", "reverse", "slice", "transpose", "tuple",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one instruction moves."""

    reads: dict[str, int]  # operand -> bytes read of it, where there are any
    written: int  # bytes
    # not so for a Pallas call whose copies depend on data, or are the kernel's own
    exact: bool = True

    @property
    def read(self) -> int:
        """Bytes read."""
        return sum(self.reads.values())


NOTHING = Traffic({}, 0)


def traffic(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    routing: grouped.Routing | None = None,
) -> Traffic:
    """Count one instruction, run once.

    `computation`: where the instruction stands; not a fused one; `routing`: of the pass that it
    belongs to, where it has experts.
    """
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in _FREE or opcode.endswith("-done"):
        return NOTHING
    if opcode == "custom-call" and any(f'"{n}"' in instruction.attributes for n in _FREE_CALLS):
        return NOTHING
    if instruction.target == pallas.TARGET:
        return _pallas(computation, instruction, routing)
    results = result(computation, instruction)
    inner = _inner(module, instruction) if opcode in ("fusion", "async") else None
    stage = _stage(module, inner) if inner else ""
    if stage == STAGED_END:
        return NOTHING
    reads: dict[str, int] = {}
    for place, name in enumerate(instruction.operands):
        source = computation.instructions.get(name)
        if source is None or len(source.arrays) != 1 or not _hbm(source.arrays[0]):
            continue
        whole = source.arrays[0].padded
        part = _part(module, instruction, inner, place, source.arrays[0], results)
        if part:
            # What stands there twice is read once at most.
            reads[name] = min(whole, reads.get(name, 0) + math.ceil(part * whole))
    if inner is not None and stage == STAGED:
        sent = (i for i in inner.instructions.values() if kind_of(i))
        written = sum(_hbm(a) for i in sent for a in i.arrays)
    elif inner is not None:
        written = _written_by(module, inner, inner.root, results)
    elif opcode in _UPDATES:
        written = 0 if results[0].space else _size(_update(computation, instruction))
    else:
        written = sum(map(_hbm, results))
    return Traffic(reads, written)


def moves_only(module: Module, instruction: Instruction) -> bool:
    """Whether an instruction computes nothing: a copy, a transposition, a slice.

    `instruction`: of a computation that is not fused.
    """
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in ("copy", "transpose", "reshape", "slice", "dynamic-slice", "concatenate"):
        return True
    inner = _inner(module, instruction) if opcode in ("fusion", "async") else None
    if inner is None:
        return False
    # Indices are computed, too; they are small.
    large = max((a.size for i in inner.instructions.values() for a in i.arrays), default=0) // 64
    return all(
        i.opcode in _MOVES and (i.opcode != "fusion" or moves_only(module, i))
        for i in inner.instructions.values()
        if i.opcode not in ("constant", "iota") and any(a.size > large for a in i.arrays)
    )


def _pallas(
    computation: Computation, instruction: Instruction, routing: grouped.Routing | None
) -> Traffic:
    """A Pallas call, by the blocks that its grid copies."""
    sources = [computation.instructions[name].arrays[0] for name in instruction.operands]
    if grouped.is_grouped(instruction):
        found = grouped.moved(instruction, sources, routing)
    else:
        found = pallas.moved(instruction.attributes, sources, instruction.arrays)
    reads: dict[str, int] = {}
    for name, source, share in zip(instruction.operands, sources, found.operands, strict=True):
        if bytes := math.ceil(share * _hbm(source)):
            reads[name] = reads.get(name, 0) + bytes
    results = zip(instruction.arrays, found.results, strict=True)
    written = sum(math.ceil(share * _hbm(array)) for array, share in results)
    return Traffic(reads, written, found.exact)


def _stage(module: Module, inner: Computation) -> str:
    """Which part of an exchange in stages a fusion carries out; empty if none."""
    targets = {i.target for i in inner.instructions.values()} & {STAGED, STAGED_END}
    if not targets and any(i.channel in module.staged for i in inner.instructions.values()):
        return "between"
    return targets.pop() if targets else ""


def _size(array: Array | None) -> int:
    """Bytes in memory; single numbers are kept in registers."""
    return array.padded if array is not None and array.dims else 0


def _hbm(array: Array) -> int:
    return 0 if array.space else _size(array)


def _inner(module: Module, instruction: Instruction) -> Computation | None:
    return module.computations.get(instruction.called.get("calls", ("",))[0])


def _update(computation: Computation, instruction: Instruction) -> Array | None:
    """What an update in place writes; of a scatter with several arrays, the first of them."""
    place = _UPDATES[instruction.opcode.removesuffix("-start")]
    if instruction.opcode == "scatter":
        place = len(instruction.operands) - (len(instruction.operands) - 1) // 2
    names = instruction.operands[place : place + 1]
    found = computation.instructions.get(names[0]) if names else None
    return found.arrays[0] if found else None


def _part(
    module: Module,
    instruction: Instruction,
    inner: Computation | None,
    place: int,
    source: Array,
    results: tuple[Array, ...],
) -> float:
    """The share of an operand's elements that an instruction reads."""
    opcode = instruction.opcode.removesuffix("-start")
    if inner is not None:
        parameter = inner.parameters.get(place)
        return _demand(module, inner, parameter) if parameter else 1.0
    if opcode in _SLICES and place == 0:
        return min(1.0, sum(a.size for a in results) / max(source.size, 1))
    if opcode in _UPDATES and place == 0:
        return 0.0
    return 1.0


def _demand(module: Module, computation: Computation, value: Instruction) -> float:
    """The share of a value's elements that a fused computation reads, 0 to 1."""
    total, own = 0.0, max(sum(a.size for a in value.arrays), 1)
    root = computation.root
    returned = root.operands if root.opcode == "tuple" else (root.name,)
    if _passed_on(module, computation, value) and value.name in returned:
        pass  # nothing of it is read here
    elif value.name in returned and _updated(module, computation, value) is None:
        return 1.0
    for user, place in computation.users[value.name]:
        size = sum(a.size for a in user.arrays)
        if (user is root and user.opcode == "tuple") or _passed_on(module, computation, user):
            continue
        if user.opcode in _SLICES and place == 0:
            total += _demand(module, computation, user) * size / own
        elif user.opcode in _UPDATES and place == 0:
            total += _demand(module, computation, user)
        elif user.opcode == "fusion":
            inner = _inner(module, user)
            parameter = inner.parameters.get(place) if inner else None
            part = _demand(module, inner, parameter) if inner and parameter else 1.0
            if inner and size == own and _elementwise(inner):
                part *= _demand(module, computation, user)  # the rest may use a part only
            total += part
        elif user.opcode in _ELEMENTWISE and size == own:
            total += _demand(module, computation, user)
        else:
            return 1.0
    return min(total, 1.0)


def _elementwise(inner: Computation) -> bool:
    """Whether a fusion needs of its operands only the elements that it is asked for."""
    free = {"parameter", "constant", "broadcast", "iota"}
    return all(i.opcode in _ELEMENTWISE | free for i in inner.instructions.values())


def _passed_on(module: Module, computation: Computation, value: Instruction) -> bool:
    """Whether a value is what an exchange in stages hands from one fusion to the next."""
    if value.opcode != "parameter" and not kind_of(value):
        return False
    return _stage(module, computation) == "between"


def _updated(
    module: Module, computation: Computation, value: Instruction
) -> tuple[Instruction, int] | None:
    """The parameter of a fused computation that a value updates in place, and bytes updated."""
    total, updated = 0, False
    while value.opcode != "parameter":
        place = 0
        if value.opcode in _UPDATES:
            total, updated = total + _size(_update(computation, value)), True
        elif value.opcode == "fusion":
            inner = _inner(module, value)
            found = _updated(module, inner, inner.root) if inner else None
            if found is None:
                return None
            place, total, updated = int(found[0].inner), total + found[1], True
        elif value.opcode != "bitcast":
            return None
        base = computation.instructions.get(value.operands[place])
        if base is None:
            return None
        value = base
    return (value, total) if updated else None


def _written_by(
    module: Module, computation: Computation, value: Instruction, results: tuple[Array, ...]
) -> int:
    """Bytes of a fused computation's value that go to HBM.

    `value`: its root, or an element of it; `results`: the fusion's arrays for it, with their memory
    spaces.
    """
    if value.opcode == "tuple" and len(value.operands) == len(results):
        parts = [computation.instructions[name] for name in value.operands]
        return sum(
            _written_by(module, computation, part, (array,))
            for part, array in zip(parts, results, strict=True)
        )
    if all(a.space for a in results) or _passed_on(module, computation, value):
        return 0
    if found := _updated(module, computation, value):
        return found[1]
    return sum(map(_hbm, results))
