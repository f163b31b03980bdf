"""A receipt's passes: of a random model that the device holds, against its floor and the plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from leapjax.benchmarks import models, receipt_plans
from leapjax.benchmarks.floor_shares import shares
from leapjax.benchmarks.machine import Machine
from leapjax.benchmarks.pass_timing import Compiled, least_work, measure, program_of
from leapjax.benchmarks.timing import summarise
from leapjax.benchmarks.workload import Case
from leapjax.failures import out_of_memory
from leapjax.lm import LM
from leapjax.models import ModelConfig, parameter_count
from leapjax.ops import hardware
from leapjax.planning import chips
from leapjax.planning.compiled import abstract_params
from leapjax.planning.models import PRESETS
from leapjax.planning.work import Work
from leapjax.progress import busy, note
from leapjax.serve.memory import array_bytes, device_limit, needed_bytes
from leapjax.sharding import MeshShape, local_devices, placements
from leapjax.wording import plural

# Share of a device's memory for the weights and two states, one of each loop that is timed: the
# rest is for temporaries.
MEMORY_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is timed."""

    name: str  # of the shape
    config: ModelConfig  # its shape, with all layers
    dtype: str  # of weights and computation
    cases: tuple[Case, ...]  # batches of a replica

    def with_layers(self, layers: int) -> Subject:
        """The same with fewer layers."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, n_layers=layers))


def subject(mesh: MeshShape, quick: bool) -> Subject:
    """What is timed on the devices here. `quick`: a tiny shape, to try the code."""
    dtype = hardware.defaults().dtype
    if quick:
        name, config, rows, lengths = "tiny", models.TINY_8B, 2, (16, 16, 8)
    elif device_limit(local_devices()[0]) is None:  # a CPU
        name, config, rows, lengths = "60m", models.MODEL_60M, 4, (128, 64, 32)
    else:
        name, config, rows, lengths = "llada-8b", PRESETS["llada-8b"], 8, (512, 256, 32)
    rows = -(-rows // mesh.fsdp) * mesh.fsdp
    return Subject(name, config, dtype, tuple(Case(c, rows, *lengths) for c in ("dual", "none")))


def layers_that_fit(wanted: Subject, mesh: MeshShape) -> int:
    """The most layers whose weights and states take their share of a device's memory."""
    limit = device_limit(local_devices()[0])
    most = wanted.config.n_layers
    if limit is None:
        return most
    place = placements(mesh)[0]

    def needed(layers: int) -> int:
        config = wanted.with_layers(layers).config
        stored = 0
        for case in wanted.cases:
            program = program_of(case, config, wanted.dtype)
            params = abstract_params(program, place)
            cache = program.kv_cache.shapes(program, case.batch)
            kept = array_bytes(cache, [place.cache(each.shape) for each in cache])
            stored = max(stored, array_bytes(params, place.parameters(config, params)) + 2 * kept)
        return stored

    return next((n for n in range(most, 1, -1) if needed(n) <= MEMORY_SHARE * limit), 1)


def time(
    wanted: Subject, mesh: MeshShape | None, machine: Machine, repeats: int
) -> tuple[LM, chips.Slice, list[dict[str, Any]]]:
    """Time the passes of a model with random weights.

    `wanted`: what is timed; with fewer layers where memory is short; `mesh`: devices to use; None
    is the default device. Returns the model, the slice that it is planned for, and the receipt's
    `cases`.
    """
    shape = mesh or MeshShape()
    where = receipt_plans.slice_here(machine, shape)
    layers = layers_that_fit(wanted, shape)
    while True:
        try:
            config = wanted.with_layers(layers).config
            lm = models.random_lm(config, wanted.dtype, mesh=mesh, split=True)
            with busy(f"timing passes of {wanted.name}, {parameter_count(config)} parameters"):
                cases = [_timed(lm, case, where, machine, repeats) for case in wanted.cases]
            return lm, where, cases
        except jax.errors.JaxRuntimeError as e:
            if not out_of_memory(e) or layers == 1:
                raise
        layers = layers * 3 // 4
        note(f"memory is short: {plural(layers, 'layer')} instead")


def _timed(
    lm: LM, case: Case, where: chips.Slice, machine: Machine, repeats: int
) -> dict[str, Any]:
    """A case's entry in the receipt."""
    replica, shape = lm.replicas[0], lm.mesh or MeshShape()
    program = program_of(case, lm.config, lm.dtype)
    compiled = Compiled(replica.params, case, program, replica.placement)
    found = measure(compiled, repeats)
    alone = dataclasses.replace(shape, data=1)
    plan = receipt_plans.plan(compiled, where, alone)
    passes = []
    for name, whole in least_work(case, lm.config, lm.dtype).items():
        # The first of a cached case's two is the window's.
        kind = "window" if case.stores and name == "pass" else "full"
        work = Work(whole.flops / shape.replica, whole.bytes / shape.replica)
        share = shares(work, machine, found[name]["median"])
        seconds, planned = found[name], plan.seconds[kind]
        bytes, over_need = plan.moved.get(kind, (None, None))
        passes.append(
            {
                "pass": kind,
                "seconds": seconds,
                "model_seconds": found["model"] if name == "pass" else None,
                "least_bytes": work.bytes,
                "least_flops": work.flops,
                "floor_s": share["floor_s"],
                "floor_bound": share["bound"],
                "floor_share": _over(share["floor_s"], seconds),
                "moved_bytes": bytes,
                "moved_over_need": over_need,
                "planned_s": {how: planned.get(how) for how in receipt_plans.KINDS},
                "over_plan": {
                    how: receipt_plans.times(1 / planned[how], seconds) if how in planned else None
                    for how in receipt_plans.KINDS
                },
            }
        )
    # The whole decode where it was timed, else a pass of it.
    if case.stores:
        tokens, seconds = case.batch * case.gen_length, found["decode"]
    else:
        tokens, seconds = case.batch * case.tokens_per_step, found["pass"]
    return {
        "cache": case.cache,
        "rows": case.batch,
        "prompt_length": case.prompt_length,
        "gen_length": case.gen_length,
        "block_length": case.block_length,
        "tokens_per_step": case.tokens_per_step,
        "compile_s": summarise([compiled.seconds]),
        "program_bytes": needed_bytes([compiled.step]),
        "audit_error": plan.error,
        "tokens_per_s": _over(tokens, seconds),
        "passes": passes,
    }


def _over(amount: float, found: dict[str, Any]) -> dict[str, Any]:
    """A summary of an amount over the values of another; the largest value gives the smallest."""
    turned = {"median": found["median"], "min": found["max"], "max": found["min"]}
    return {k: amount / v for k, v in turned.items()} | {"n": found["n"]}
