"""The way that control takes through a compiled program: loops, their trip counts, their values."""

import dataclasses
import re
from collections.abc import Callable, Iterator

from leapjax.planning.hlo import Computation, Instruction, Module

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Their result is their first operand, or a part of it, or a copy.
_FOLLOWED = {
    "bitcast", "copy", "copy-start", "copy-done", "transpose", "reshape", "slice", "slice-start",
    "slice-done", "dynamic-slice", "opt-barrier", "while",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Site:
    """An instruction that runs, in its place."""

    computation: Computation  # where it stands
    instruction: Instruction
    inside: tuple[str, ...] = ()  # names of the loops and conditionals around it, outermost first
    times: int = 1  # how often it runs, every loop of an unknown number of turns taken once
    certain: bool = True  # no such loop is around it


def walk(
    module: Module,
    start: Computation,
    weigh: Callable[[Site], float],
    skip: Instruction | None = None,
) -> Iterator[Site]:
    """Everything that runs below a computation, in the order of the schedule.

    `weigh`: of the ways that a conditional can take, the one whose sites weigh most is gone.
    """

    def below(names, at: Site) -> Iterator[Site]:
        for name in names:
            for instruction in module.computations[name].instructions.values():
                here = dataclasses.replace(
                    at, computation=module.computations[name], instruction=instruction
                )
                yield from one(here)

    def one(here: Site) -> Iterator[Site]:
        instruction = here.instruction
        if instruction is skip:
            return
        called = instruction.called
        if instruction.opcode == "while":
            turns = trips(module, instruction)
            turn = dataclasses.replace(
                here,
                inside=(*here.inside, instruction.name),
                times=here.times * (1 if turns is None else turns),
                certain=here.certain and turns is not None,
            )
            yield from below((*called.get("condition", ()), *called.get("body", ())), turn)
        elif instruction.opcode == "call":
            yield from below(called.get("to_apply", ()), here)
        elif instruction.opcode == "conditional":
            names = [name for names in called.values() for name in names]
            way = dataclasses.replace(here, inside=(*here.inside, instruction.name))
            ways = [list(below([name], way)) for name in names]
            yield from max(ways, key=lambda way: sum(map(weigh, way)), default=[])
        else:
            yield here

    for instruction in start.instructions.values():
        yield from one(Site(start, instruction))


def trips(module: Module, loop: Instruction) -> int | None:
    """How often a `while` runs its body; None if that depends on data.

    The text says it in the loop's configuration, or as a condition `i < end` of a counter whose
    start, end and step are constants.
    """
    if known := _TRIPS.search(loop.attributes):
        return int(known.group(1))
    condition = module.computations.get(loop.called.get("condition", ("",))[0])
    body = module.computations.get(loop.called.get("body", ("",))[0])
    if condition is None or body is None or len(condition.root.operands) != 2:
        return None
    counter, end = condition.root.operands
    place, end = condition.instructions[counter].index, _number(module, condition, end)
    if "direction=LT" not in condition.root.attributes or place is None or end is None:
        return None
    start = _number(module, condition, counter, first=True) or 0
    return -(-max(end - start, 0) // _step(module, body, place))


def argument(module: Module, computation: Computation, name: str) -> Instruction | None:
    """The program's argument that a value is, a part of, or a copy of; None if it is computed."""
    path: list[int] = []
    while (value := computation.instructions.get(name)) is not None:
        if value.opcode == "parameter":
            if computation.name == module.entry:
                return value
            if computation.name not in module.callers:
                return None
            inner, (computation, caller) = computation.name, module.callers[computation.name]
            place = int(value.inner)
            if caller.opcode == "conditional":  # the first operand chooses among the branches
                branches = [n for names in caller.called.values() for n in names]
                place = 1 + branches.index(inner)
            name = caller.operands[place]
        elif value.index is not None:
            path.append(value.index)
            name = value.operands[0]
        elif value.opcode == "tuple" and path:
            name = value.operands[path.pop()]
        elif value.opcode in _FOLLOWED:
            name = value.operands[0]
        else:
            return None
    return None


def _step(module: Module, body: Computation, place: int) -> int:
    """What a turn adds to an element of a loop's values; 1 if the text does not say it."""
    if body.root.opcode == "tuple":
        last = body.instructions[body.root.operands[place]]
        if last.opcode == "add":
            found = [_number(module, body, name) for name in last.operands]
            return max((n for n in found if n), default=1)
    return 1


def _number(module: Module, computation: Computation, name: str, first: bool = False) -> int | None:
    """The number that a value is; `first`: in a loop's first turn, though it changes later."""
    while (value := computation.instructions.get(name)) is not None:
        if value.opcode == "constant":
            return int(value.inner) if re.fullmatch(r"-?\d+", value.inner) else None
        if value.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            name = value.operands[0]
            continue
        place, caller = value.index, module.callers.get(computation.name)
        if place is None or caller is None or caller[1].opcode != "while":
            return None
        body = module.computations[caller[1].called["body"][0]]
        if not first and body.instructions[body.root.operands[place]].index != place:
            return None
        computation, first = caller[0], False
        given = computation.instructions.get(caller[1].operands[0])
        if given is None or given.opcode != "tuple":
            return None
        name = given.operands[place]
    return None
