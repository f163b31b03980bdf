"""Passes of a model with experts beside those of a dense one of equal active parameters.

Both decode the same prompts in turns. What a pass over a window has to read of its experts is
counted: the router's choices of the passes that are timed, made once more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.benchmarks.machine import Machine
from leapjax.benchmarks.pass_timing import Compiled, begin, least_work, passes_of, program_of
from leapjax.benchmarks.timing import ratios, spread, summarise
from leapjax.benchmarks.workload import Case
from leapjax.lm import LM
from leapjax.models.config import Experts, ModelConfig, layer_runs
from leapjax.ops import experts, xla
from leapjax.ops.arrangement import BACKENDS
from leapjax.ops.weights import Arranged
from leapjax.serve.lowering import lower_run
from leapjax.studies.tables import markdown_table


def with_experts(config: ModelConfig, count: int, chosen: int) -> ModelConfig:
    """A dense model's shape with experts in place of its MLPs, as many parameters active.

    Args:
      config: the dense shape.
      count: experts a layer.
      chosen: experts a token; they share the MLP's inner width.
    """
    own = Experts(count, chosen, config.mlp_hidden_size // chosen, normalize=True)
    kinds = [own] * config.n_layers
    runs = layer_runs(kinds, config.mlp_hidden_size, config.attention)
    return dataclasses.replace(config, family="llada_moe", layer_runs=runs)


def touched(model: Arranged, case: Case, program, passes: int) -> list[float]:
    """Experts that at least one token of a pass over the window chose.

    Args:
      model: arranged weights.
      case: what is decoded, one token a step.
      program: its structure.
      passes: how many, after the full pass.

    Returns:
      A number for each pass and layer with experts.
    """
    counts: list[float] = []
    base = BACKENDS[model.backend]

    def mlp(x, layer):
        if "experts" in layer:
            y = xla.normed(x, layer["mlp_norm"]).reshape(-1, x.shape[-1])
            chosen, _ = experts.route(y, layer["router"])
            jax.debug.callback(lambda c: counts.append(len(np.unique(c))), chosen)
        return base.mlp(x, layer)

    counting = ModuleType("counting")
    counting.__dict__.update(vars(base) | {"mlp": mlp})
    BACKENDS[counting.__name__] = counting
    try:
        model = model.replace(backend=counting.__name__)
        step = lower_run(model, program, case.batch, None).compile()
        rows, state = np.int32(case.batch), begin(case, program)
        state = jax.block_until_ready(step(model, state, np.int32(1), rows))
        jax.effects_barrier()
        counts.clear()
        jax.block_until_ready(step(model, state, np.int32(passes), rows))
        jax.effects_barrier()
    finally:
        del BACKENDS[counting.__name__]
    return counts


def measure(dense: LM, mixed: LM, case: Case, machine: Machine, rounds: int) -> dict[str, Any]:
    """Time full passes and window passes of both models in turns.

    Args:
      dense: a model without experts.
      mixed: one of as many active parameters, all of its layers with experts.
      case: what is decoded, with a KV cache; one token a step.
      machine: as measured in this run.
      rounds: of alternating turns, after one that does not count.

    Returns:
      `full` and `window`: seconds of `dense` and `mixed`, and their ratio, round by round
      (`summarise`). Of a window pass of `mixed` also experts `touched` in a layer (`summarise`),
      their `bytes` in all layers, `bytes_s` and `flops_s` at the machine's rates, and `of_floor`,
      its time over the larger of both.
    """
    passes = passes_of(case)
    lms = {"dense": dense, "mixed": mixed}
    compiled = {
        name: Compiled(lm.replicas[0].params, case, program_of(case, lm.config, lm.dtype), {})
        for name, lm in lms.items()
    }
    times: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in lms} for kind in ("full", "window")
    }
    for i in range(rounds + 1):
        for name in lms if i % 2 == 0 else reversed([*lms]):
            state, full = compiled[name].run(compiled[name].begin(), 1)
            state, window = compiled[name].run(state, passes)
            del state
            if i:
                times["full"][name].append(full)
                times["window"][name].append(window / passes)
    found: dict[str, Any] = dataclasses.asdict(case)
    for kind, each in times.items():
        ratio = ratios(each["mixed"], each["dense"])
        found[kind] = {name: summarise(t) for name, t in each.items()} | {"ratio": ratio}
    model = mixed.replicas[0].params
    counts = touched(model, case, compiled["mixed"].program, passes)
    rule = mixed.config.runs[0].experts
    assert rule is not None and len(counts) == passes * mixed.config.n_layers
    item = jnp.dtype(mixed.dtype).itemsize
    each = 3 * mixed.config.d_model * rule.hidden_size * item
    size = float(np.mean(counts)) * mixed.config.n_layers * each
    flops = least_work(case, dense.config, dense.dtype)["pass"].flops
    floors = {"bytes_s": size / machine.bytes_per_s, "flops_s": flops / machine.flops_per_s}
    of_floor = summarise([t / max(floors.values()) for t in times["window"]["mixed"]])
    found["window"] |= {"touched": summarise(counts), "bytes": size, "of_floor": of_floor} | floors
    return found


def rows(
    dense: LM, mixed: LM, cases: Sequence[Case], machine: Machine, rounds: int
) -> Iterator[dict[str, Any]]:
    """`measure`, one case after the other."""
    for case in cases:
        yield measure(dense, mixed, case, machine, rounds)


def text(found: Sequence[dict[str, Any]]) -> str:
    """What `measure` found, as tables.

    Args:
      found: a dictionary a case.
    """
    both = [("rows", "pass", "dense, ms (range)", "experts, ms (range)", "ratio (range)")]
    floors = [
        (
            "rows",
            "experts touched in a layer (range)",
            "their bytes, GB",
            "bytes / copy rate, ms",
            "active FLOPs / matrix rate, ms",
            "window pass over the larger (range)",
        )
    ]
    for row in found:
        for kind in ("full", "window"):
            dense, mixed = (spread(row[kind][name], 2, 1e3) for name in ("dense", "mixed"))
            both.append((str(row["batch"]), kind, dense, mixed, spread(row[kind]["ratio"])))
        own = row["window"]
        floors.append(
            (
                str(row["batch"]),
                spread(own["touched"], 0),
                f"{own['bytes'] / 1e9:.3f}",
                f"{own['bytes_s'] * 1e3:.2f}",
                f"{own['flops_s'] * 1e3:.2f}",
                spread(own["of_floor"]),
            )
        )
    return markdown_table(both, 2) + "\n" + markdown_table(floors, 0)
