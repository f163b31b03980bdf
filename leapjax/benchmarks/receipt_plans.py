"""What `leapjax plan` says of the device here and of the passes that a receipt times."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from leapjax.benchmarks.machine import Machine
from leapjax.benchmarks.pass_timing import Compiled, passes_of
from leapjax.benchmarks.workload import ragged_requests
from leapjax.decoding import Program
from leapjax.lm import LM
from leapjax.planning import audit, chips, exchange, need, roofline, speed
from leapjax.planning.schedule import simulate
from leapjax.serve.memory import device_limit
from leapjax.sharding import MeshShape, local_devices

KINDS = ("bound", "bytes", "cycles")  # of `speed.estimate`


def slice_here(machine: Machine, mesh: MeshShape) -> chips.Slice:
    """The TPU slice of the devices here; for others a chip of the measured rates."""
    device = local_devices()[0]
    chip = chips.of_device(str(device.device_kind))
    if chip is not None:
        return chips.home(chip, mesh.replica)
    limit = device_limit(device) or math.inf
    chip = chips.Chip(
        name="here",
        xla="",
        flops=machine.flops_per_s,
        hbm=limit,
        bandwidth=machine.bytes_per_s,
        link=math.inf,  # nobody has measured what its devices tell each other
        clock=math.nan,
        dimensions=2,
    )
    return chips.home(chip, mesh.replica)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the plan says of a case; of each pass, `window` or `full`, of all rows."""

    # by kind of plan, of `KINDS`; without an audit the `bound` alone
    seconds: dict[str, dict[str, float]]
    # bytes a device, and how many times those that the pass has to move; empty without an audit
    moved: dict[str, tuple[float, float | None]] = dataclasses.field(default_factory=dict)
    error: str | None = None  # why there is no audit of a TPU's program


def plan(compiled: Compiled, where: chips.Slice, mesh: MeshShape) -> Plan:
    """Plan a compiled case.

    `compiled`: of one replica; on a TPU its program is audited (others tell nothing of bytes).
    """
    case, program = compiled.case, compiled.program
    calls = {"window": passes_of(case), "full": 1} if case.stores else {"full": passes_of(case)}
    what = (where, mesh, program, case.batch, calls)
    if not where.chip.kinds:
        return Plan(pass_seconds(*what))
    try:
        text = compiled.step.as_text() or ""
        account = audit.audit(text, need.passes(mesh, program, case.batch))
        moved = moved_bytes(account, program, case.batch)
        return Plan(pass_seconds(*what, account), moved)
    except Exception as e:  # a compiler whose texts differ must not cost the receipt
        error = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        return Plan(pass_seconds(*what), error=error)


def _runs(names: Collection[str], program: Program, slots: int) -> dict[str, dict[str, float]]:
    """`window` and `full` -> how often each of some parts runs in such a pass of all rows."""
    turns = -(-slots // (program.refresh_group or slots))
    passes = {"window": {need.WINDOW: 1.0}, "full": {need.REFRESH: turns, need.FULL: 1.0}}
    kept = {kind: {n: t for n, t in runs.items() if n in names} for kind, runs in passes.items()}
    return {kind: runs | {need.BESIDES: 1.0} for kind, runs in kept.items() if runs}


def pass_seconds(
    where: chips.Slice,
    mesh: MeshShape,
    program: Program,
    slots: int,
    calls: Mapping[str, int],
    account: audit.Audit | None = None,
) -> dict[str, dict[str, float]]:
    """How long `leapjax plan` says that passes take.

    `calls`: `window` and `full` -> how many such passes a call of the program runs; `account`: of
    the compiled program; None plans without it. Returns `window` and `full`, of all rows -> seconds
    by kind of plan (`KINDS`), with their share of what a call does once.
    """
    found: dict[str, Any] = {}
    if account is not None:
        parts = [*account.passes.values(), account.outside]
        moved = {part.name: part.moved for part in parts}
        counted = {"moved": moved, "collectives": exchange.listed(parts, mesh)}
        found = {"counted": counted, "cycles": {part.name: part.cycles for part in parts}}
    said = speed.estimate(where, mesh, program, slots, tokens_per_step=1, **found)["seconds"]
    out: dict[str, dict[str, float]] = {}
    for kind, runs in _runs(said["bound"], program, slots).items():
        runs = runs | {audit.OUTSIDE: 1 / calls[kind]}
        out[kind] = {
            how: sum(n * said[how].get(part, 0.0) for part, n in runs.items())
            for how in KINDS
            if how in said
        }
    return out


def moved_bytes(
    account: audit.Audit, program: Program, slots: int
) -> dict[str, tuple[float, float | None]]:
    """Bytes a device that a compiled decode moves in a pass of all rows.

    Returns `window` and `full` -> bytes moved, and their ratio to the bytes needed.
    """
    out = {}
    for kind, runs in _runs(account.passes, program, slots).items():
        parts = [(account.passes[name], times) for name, times in runs.items()]
        moved = sum(times * part.moved for part, times in parts)
        least = sum(times * part.need.total for part, times in parts if part.need)
        out[kind] = moved, moved / least if least else None
    return out


def planned_ragged(
    lm: LM, where: chips.Slice, cache: str, slots: int, count: int
) -> tuple[int, float]:
    """What `leapjax plan` says of `decoding.ragged`.

    `count`: requests. Returns the passes of all replicas by the simulated schedule, and the seconds
    at the bound, of the slowest replica.
    """
    requests, mesh = ragged_requests(lm.config, cache, count), lm.mesh or MeshShape()
    program = lm.engine(slots).program(requests[0])
    rows = [[r.config.steps // r.config.blocks] * r.config.blocks for r in requests]
    alone = dataclasses.replace(mesh, data=1)
    least = {k: t.seconds for k, t in roofline.parts(where, alone, program, slots).items()}
    counts = [
        simulate(rows[i :: mesh.data], slots, program.refresh_group) for i in range(mesh.data)
    ]
    seconds = [
        c.window_passes * least[need.WINDOW]
        + c.turns * least[need.REFRESH]
        + c.passes * least[need.BESIDES]
        for c in counts
    ]
    return sum(c.passes for c in counts), max(seconds)


def times(factor: float, found: dict[str, Any]) -> dict[str, Any]:
    """A summary whose values are multiplied."""
    return {k: v if k == "n" else factor * v for k, v in found.items()}
