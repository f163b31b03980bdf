"""Which meshes to try on a slice, and what each would do: compiled once for all replica counts.

Replicas along `data` run the same program on devices of their own, so one replica is compiled,
for the smallest slice that holds it, and the answer serves every slice and count of replicas.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from leapjax.config import DecodeConfig
from leapjax.decoding import Program, program_for
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.planning import chips, compiled, isolated, roofline
from leapjax.progress import busy
from leapjax.serve.sizes import bucket
from leapjax.sharding import MeshShape
from leapjax.wording import plural


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be decoded.

    Attributes:
      model: the shape.
      config: the options.
      prompt_length: tokens.
      dtype: of weights and computation.
      batch: rows on the slice at once; None is 8 a chip.
      refresh_group: rows that refresh at once; None is the engine's default on a TPU.
      tokens_per_step: assumed, a row.
    """

    model: ModelConfig
    config: DecodeConfig
    prompt_length: int
    dtype: str
    batch: int | None
    refresh_group: int | None
    tokens_per_step: float

    def slots(self, where: chips.Slice, mesh: MeshShape) -> int:
        """Rows of a replica."""
        rows = -(-(self.batch or 8 * where.chips) // mesh.data)
        return -(-rows // mesh.fsdp) * mesh.fsdp

    def program(self, slots: int) -> Program:
        """The decode of a replica with so many rows."""
        return program_for(
            self.config,
            self.model,
            length=bucket(self.prompt_length) + self.config.gen_length,
            dtype=self.dtype,
            eot_token_id=None,
            refresh_group=self.refresh_group or max(4, slots // 8),
        )


class Store:
    """Results of compilations, one JSON line each, so that an interrupted sweep goes on.

    Args:
      path: the file; None keeps nothing.

    Raises:
      UserError: the file can't be read.
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


def meshes(work: Workload, where: chips.Slice) -> list[MeshShape]:
    """Meshes worth trying on a slice, fastest first, by the roofline.

    Left out are those whose weights and cache alone exceed the memory, and replicas that would
    have no row. Sizes are powers of two; `tensor` at most the heads.
    """
    sizes = [2**i for i in range(10) if where.devices % 2**i == 0]
    has = where.chip.hbm / where.chip.devices
    rated = []
    for tensor in sizes:
        for fsdp in (1, 2, 4, 8):
            if where.devices % (tensor * fsdp) or work.model.n_heads % tensor:
                continue
            mesh = MeshShape(where.devices // (tensor * fsdp), fsdp, tensor)
            slots = work.slots(where, mesh)
            if (work.batch or 8 * where.chips) < mesh.data * mesh.fsdp:
                continue
            program = work.program(slots)
            if roofline.held(mesh, program, slots).total >= has:
                continue
            guess = roofline.predict(where, mesh, program, slots, work.tokens_per_step)
            rated.append((-guess.tokens_per_s_chip, mesh.replica, str(mesh), mesh))
    return [mesh for *_, mesh in sorted(rated)]


def plan(
    work: Workload, where: chips.Slice, tries: list[MeshShape], store: Store, timeout_s: float
) -> dict[str, Any]:
    """The first of some meshes whose program fits.

    Each is compiled in a process of its own: if the compiler aborts, the next mesh has its turn.

    Args:
      work: what is decoded.
      where: the slice.
      tries: meshes, best first.
      store: of results.
      timeout_s: wall time that compiling one mesh may take, in seconds.

    Returns:
      JSON-ready: topology, mesh, memory, collectives, prediction; `fits`, or else the last mesh's
      `error`; in `failed` each mesh that did not compile or needs too much, its `error`, and how
      the compiler `ended` if it gave no answer.
    """
    base: dict[str, Any] = {"topology": str(where), "chips": where.chips, "fits": False}
    out = base | {"failed": []}
    has = where.chip.hbm / where.chip.devices
    for mesh in tries:
        slots = work.slots(where, mesh)
        program = work.program(slots)
        place = chips.home(where.chip, mesh.replica)
        alone = dataclasses.replace(mesh, data=1)
        made = store.get(
            _key(place, alone, program, slots),
            lambda: _compile(place, alone, program, slots, timeout_s),  # noqa: B023
        )
        out = base | {"failed": out["failed"], "mesh": str(mesh), "rows_a_replica": slots}
        out |= {"compiled_for": str(place)} | made
        if "error" not in made:
            guess = roofline.predict(where, mesh, program, slots, work.tokens_per_step)
            out |= {
                "fits": made["total"] <= has,
                "hbm_device": int(has),
                "window_pass": _time(guess.window),
                "full_pass": _time(guess.full),
                "step_s": guess.step,
                "tokens_per_s_chip": guess.tokens_per_s_chip,
            }
            if out["fits"]:
                break
            needed = f"needs {made['total'] / 1e9:.1f} GB a device of {has / 1e9:.1f}"
            out["error"] = f"{place}, {alone}: {needed}"
        failed = {"mesh": str(mesh), "error": out["error"], "ended": made.get("ended")}
        out["failed"] = [*out["failed"], failed]
    return out


def _time(time: roofline.Time) -> dict[str, Any]:
    return dataclasses.asdict(time) | {"seconds": time.seconds, "bound": time.bound}


def _key(place: chips.Slice, mesh: MeshShape, program: Program, slots: int) -> str:
    try:
        compiler = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        compiler = "?"
    from leapjax import __version__

    parts = (str(place), str(mesh), slots, program, jax.__version__, compiler, __version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _compile(
    place: chips.Slice, mesh: MeshShape, program: Program, slots: int, timeout_s: float
) -> dict[str, Any]:
    """What `compile_one` says, or how its process ended."""
    try:
        with busy(f"compiling for {place} with --mesh {mesh}, {plural(slots, 'row')} a replica"):
            return isolated.call(compile_one, place, mesh, program, slots, timeout_s=timeout_s)
    except isolated.Ended as e:
        verb = "compiling" if e.how == "timed out" else "compiler"
        text = f"{place}, {mesh}: {verb} {e.how} ({e.reason})"
        return {"error": text, "ended": e.how, "again": not e.lasting}


def compile_one(
    place: chips.Slice, mesh: MeshShape, program: Program, slots: int
) -> dict[str, Any]:
    """Compile one replica for a slice; may abort the process.

    Args:
      place: the slice.
      mesh: of the replica.
      program: the decode.
      slots: rows of the replica.

    Returns:
      JSON-ready: bytes a device, seconds, collectives; or an `error`.

    Raises:
      UserError: no compiler, or not for this slice.
    """
    try:
        made = compiled.compile_for(place, mesh, program, slots)
    except UserError as e:
        if "does not compile" not in str(e):
            raise
        return {"error": str(e)}
    kinds: dict[str, dict[str, int]] = {}
    for c in made.collectives:
        over = ",".join(c.axes({"fsdp": mesh.fsdp, "tensor": mesh.tensor}) or ("?",))
        kind = kinds.setdefault(f"{c.kind} over {over}", {"in_loop": 0, "outside": 0})
        kind["in_loop" if c.in_loop else "outside"] += 1
    cache = int(roofline.held(mesh, program, slots).cache)
    return {
        "weights": made.weights,
        "cache": cache,
        "state": made.state - cache,
        "temporaries": made.temporaries,
        "total": made.total,
        "donated": made.donated,
        "compile_s": round(made.seconds, 1),
        "compile_cpu_s": round(made.cpu_seconds, 1),
        "collectives": kinds,
    }


def recommend(plans: list[dict[str, Any]], prices: dict[str, float]) -> dict[str, Any] | None:
    """The plan whose tokens cost least, of those that fit.

    Args:
      plans: what was planned.
      prices: of a chip and hour by kind; empty counts every chip alike.
    """
    fitting = [p for p in plans if p["fits"]]
    if prices:
        fitting = [p for p in fitting if p["topology"].split(":")[0] in prices]

    def cost(plan):
        price = prices.get(plan["topology"].split(":")[0], 1.0)
        # Of equals the smallest slice: easiest to get.
        return float(f"{price / plan['tokens_per_s_chip']:.3g}"), plan["chips"]

    return min(fitting, key=cost, default=None)
