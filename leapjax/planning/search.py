"""Compile candidates until they fit, and say what each would do.

Replicas along `data` run the same program on devices of their own, so one replica is compiled,
for the smallest slice that holds it, and the answer serves every slice and count of replicas.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from leapjax.decoding import Program
from leapjax.decoding.prefill import prefills
from leapjax.errors import UserError
from leapjax.planning import audit, audit_report, chips, compiled, exchange, isolated, need
from leapjax.planning.candidates import Candidate, Workload
from leapjax.planning.work import parameters, touched
from leapjax.progress import busy
from leapjax.serve.lowering import lower_prefill
from leapjax.sharding import MeshShape
from leapjax.wording import plural

ROW_TRIES = 4  # programs compiled for a candidate at most, until one fits


class Store:
    """Results of compilations, one JSON line each, so that an interrupted sweep goes on.

    `path`: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        if path is None or not path.exists():
            return
        try:
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry["key"]] = entry["result"]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}: is no file of compiled results ({e}); remove it") from e

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a key, made if it is not known yet.

        One with a true `again` is kept for this run only, not in the file.
        """
        if key not in self.known:
            self.known[key] = make()
            if self.path is not None and not self.known[key].get("again"):
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    with self.path.open("a") as file:
                        file.write(json.dumps({"key": key, "result": self.known[key]}) + "\n")
                except OSError as e:
                    raise UserError(f"{self.path}: can't be written ({e.strerror or e})") from e
        return self.known[key]


def plan(work: Workload, candidate: Candidate, store: Store, timeout_s: float) -> dict[str, Any]:
    """Compile a candidate, with fewer and fewer rows until it fits.

    Each program is compiled in a process of its own, where the compiler may abort.

    `candidate`: the mesh and the form of the weights; `timeout_s`: wall time that compiling one
    program may take, in seconds.
    """
    where, mesh, quantize = candidate.where, candidate.mesh, candidate.quantize
    has = where.chip.hbm / where.chip.devices
    place, alone = chips.home(where.chip, mesh.replica), dataclasses.replace(mesh, data=1)
    out: dict[str, Any] = {
        "topology": str(where),
        "chips": where.chips,
        "mesh": str(mesh),
        "chips_a_replica": mesh.replica / where.chip.devices,
        "compiled_for": str(place),
        "quantize": quantize,
        "parameters": dict(zip(("all", "active"), parameters(work.model), strict=True)),
        "fits": False,
        "hbm_device": int(has),
        "failed": [],
    }
    for slots in candidate.rows[:ROW_TRIES]:
        program = work.program(where.chip)
        key = _key(place, alone, program, slots, quantize)
        make = (place, alone, program, slots, quantize, timeout_s)
        made = store.get(key, lambda make=make: _compile(*make))
        failed = {"rows": slots, "error": made.get("error"), "ended": made.get("ended")}
        if "error" not in made:
            total = made["counted"]["total"]
            if total <= has:
                found = {"counted": made["counted"], "cycles": made["estimated"]["cycles"]}
                said = work.estimate(where, mesh, slots, quantize, **found)
                out |= {"fits": True, "rows_a_replica": slots}
                out |= {"refresh_group": program.refresh_group} | made
                return out | {"estimated": made["estimated"] | said}
            failed["error"] = (
                f"{place}, {alone}: needs {total / 1e9:.1f} GB a device of {has / 1e9:.1f}"
            )
        out["failed"] = [*out["failed"], failed]
        if made.get("ended") == "timed out":  # fewer rows hardly take less
            break
    return out | {"error": out["failed"][-1]["error"]}


def _key(place, mesh: MeshShape, program: Program, slots: int, quantize: str | None) -> str:
    try:
        compiler = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        compiler = "?"
    from leapjax import __version__

    parts = (str(place), str(mesh), slots, quantize, program, jax.__version__, compiler)
    text = repr((*parts, __version__, "counted, audit 6"))  # the last names what a result holds
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _compile(
    place: chips.Slice,
    mesh: MeshShape,
    program: Program,
    slots: int,
    quantize: str | None,
    timeout_s: float,
) -> dict[str, Any]:
    """What `compile_one` says, or how its process ended."""
    rows = f"{plural(slots, 'row')} a replica{quantize and ', ' + quantize or ''}"
    try:
        with busy(f"compiling for {place} with --mesh {mesh}, {rows}"):
            how = (place, mesh, program, slots, quantize)
            return isolated.call(compile_one, *how, timeout_s=timeout_s)
    except isolated.Ended as e:
        verb = "compiling" if e.how == "timed out" else "compiler"
        text = f"{place}, {mesh}: {verb} {e.how} ({e.reason})"
        return {"error": text, "ended": e.how, "again": not e.lasting}


def compile_one(
    place: chips.Slice, mesh: MeshShape, program: Program, slots: int, quantize: str | None
) -> dict[str, Any]:
    """Compile one replica for a slice, its prefill too; may abort the process.

    The result is JSON-ready: what is `counted` in the program (bytes a device), its whole `audit`,
    `estimated` by the compiler and `measured` here (seconds); or an `error`.
    """
    try:
        what = (place, mesh, program, slots, quantize)
        made = [compiled.compile_for(*what)]
        if prefills(program):
            made.append(compiled.compile_for(*what, lower_prefill))
    except UserError as e:
        if "does not compile" not in str(e):
            raise
        return {"error": str(e)}
    cache = int(need.held(mesh, program, slots, quantize).cache)
    expected = need.passes(mesh, program, slots, quantize)
    account, *prefill = [audit.audit(each.text, expected) for each in made]
    for each in prefill:  # another program, between chunks
        account.passes[need.PREFILL] = each.passes[need.PREFILL]
        account.passes[audit.AROUND] = dataclasses.replace(each.outside, name=audit.AROUND)
    parts = [*account.passes.values(), account.outside]
    run, byte = made[0], place.chip.clock * place.chip.devices / place.chip.bandwidth
    return {
        "counted": {
            "weights": run.weights,
            "cache": cache,
            "state": run.state - cache,
            "temporaries": max(each.temporaries for each in made),
            "total": max(each.total for each in made),
            "donated": run.donated,
            "collectives": exchange.listed(parts, mesh),
            "moved": {part.name: part.moved for part in parts},
            "need": {part.name: part.need.total for part in parts if part.need},
        },
        "audit": audit_report.record(account, place.chip),
        "estimated": {
            # Grouped products, for which the compiler estimates none, take as long as their bytes.
            "cycles": {part.name: part.cycles + int(part.grouped * byte) for part in parts},
            "experts": {
                name: {
                    "tokens": one.routing.tokens,
                    "touched": touched(one.routing.experts, one.routing.tokens),
                    "of": one.routing.experts.count,
                    "bytes": one.need.experts,
                }
                for name, one in expected.passes.items()
                if one.routing
            },
        },
        "measured": {
            "compile_s": round(sum(each.seconds for each in made), 1),
            "compile_cpu_s": round(sum(each.cpu_seconds for each in made), 1),
        },
    }


def tokens_per_s(plan: dict[str, Any]) -> float:
    """Tokens/s a chip of a plan that fits: the smaller estimate of the compiled program."""
    each = plan["estimated"]["tokens_per_s_chip"]
    return min(each.values())


def cost(
    plan: dict[str, Any], prices: dict[str, float], tokens: int | None = None
) -> dict[str, float]:
    """What a plan that fits is estimated to cost, per million tokens and for a job of `tokens`.

    `prices` are of a chip and hour, by kind; without one there are chip hours only.
    """
    price = prices.get(plan["topology"].split(":")[0])
    hours = {"million_tokens": 1e6 / tokens_per_s(plan) / 3600}
    if tokens:
        hours["job"] = hours["million_tokens"] * tokens / 1e6
    out = {f"chip_hours_{what}": value for what, value in hours.items()}
    if price is not None:
        out |= {f"price_{what}": value * price for what, value in hours.items()}
    return out


def recommend(plans: list[dict[str, Any]], prices: dict[str, float]) -> dict[str, Any] | None:
    """The plan whose tokens cost least, of those that fit.

    `prices`: of a chip and hour by kind; empty counts every chip alike.
    """
    fitting = [p for p in plans if p["fits"]]
    if prices:
        fitting = [p for p in fitting if p["topology"].split(":")[0] in prices]

    def cost(plan):
        price = prices.get(plan["topology"].split(":")[0], 1.0)
        # Of equals the smallest slice: easiest to get.
        return float(f"{price / tokens_per_s(plan):.3g}"), plan["chips"]

    return min(fitting, key=cost, default=None)
