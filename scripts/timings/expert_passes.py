"""Passes of a model with experts beside those of a dense one of equal active parameters.

Both take turns. Full passes and window passes are the decode loop's, of random prompts. There the
masks of a random model choose the same few experts, which says little of a trained one. So window
passes are also timed over random tokens, the model alone: these choose nearly all of the experts
(`tokens_apart`).
What a window pass has to read of its experts is counted, not assumed: the router's choices of
passes such as are timed.

    python scripts/timings/expert_passes.py --write docs/performance.md
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _options import add_options

from leapjax.benchmarks import machine, models
from leapjax.benchmarks.pass_timing import Compiled, least_work, passes_of, program_of
from leapjax.benchmarks.report import QUICK, Report
from leapjax.benchmarks.timing import ratios, spread, summarise
from leapjax.benchmarks.workload import Case
from leapjax.cli.common import command
from leapjax.decoding import Program
from leapjax.lm import LM
from leapjax.models.config import Experts, ModelConfig, layer_runs
from leapjax.ops import cpu, experts, xla
from leapjax.ops.arrangement import BACKENDS
from leapjax.ops.weights import Arranged
from leapjax.studies.tables import markdown_table


def with_experts(config: ModelConfig, count: int, chosen: int) -> ModelConfig:
    """A dense model's shape with experts in place of its MLPs, as many parameters active.

    `count`: experts a layer; `chosen`: experts a token; they share the MLP's inner width.
    """
    own = Experts(count, chosen, config.mlp_hidden_size // chosen, normalize=True)
    kinds = [own] * config.n_layers
    runs = layer_runs(kinds, config.mlp_hidden_size, config.attention)
    return dataclasses.replace(config, family="llada_moe", layer_runs=runs)


def tokens_apart(config: ModelConfig) -> LM:
    """A random model whose attention adds zeros: as much work, and tokens choose for themselves.

    The attention of random weights adds nearly the same to every token, which would choose the same
    experts then.
    """
    params = models.random_lm(config).params
    layers = {
        name: jnp.zeros_like(leaf) if name == "o" else leaf
        for name, leaf in params["layers"].items()
    }
    return LM({**params, "layers": layers}, config, None)


PASSES = {"full": "full", "masks": "window, decoding", "random": "window of random tokens"}
_counts: list[float] = []  # module-wide, since compiled programs are kept


def _count(chosen) -> None:
    _counts.append(len(np.unique(chosen)))


@contextlib.contextmanager
def counting(model: Arranged) -> Iterator[Arranged]:
    """The same weights under a backend that counts, in `_counts`, a layer's chosen experts."""
    base, name = BACKENDS[model.backend], f"counting {model.backend}"

    def mlp(x, layer):
        if "experts" in layer:
            tokens, router, norm = x.reshape(-1, x.shape[-1]), layer["router"], layer["mlp_norm"]
            if base is cpu:
                chosen, _ = cpu.route(tokens, router, norm)
            else:
                chosen, _ = experts.route(xla.normed(tokens, norm), router)
            jax.debug.callback(_count, chosen)
        return base.mlp(x, layer)

    BACKENDS[name] = ModuleType(name)
    BACKENDS[name].__dict__.update(vars(base) | {"mlp": mlp})
    try:
        yield model.replace(backend=name)
    finally:
        jax.effects_barrier()
        del BACKENDS[name]


def turn(compiled: Compiled, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Time one pass of each kind; windows in the mean of those that are timed together.

    `compiled`: the case's programs; `seed`: of the random tokens. Yields `full`, `masks` and
    `random`, each with the seconds of a pass.
    """
    n, words = passes_of(compiled.case), compiled.program.model.vocab_size
    state, took = compiled.run(compiled.begin(), 1)
    yield "full", took
    state, took = compiled.run(state, n)
    yield "masks", took / n
    tokens = np.random.default_rng(seed).integers(0, words, state.tokens.shape)
    _, took = compiled.run_bare(state.replace(tokens=jnp.asarray(tokens, jnp.int32)))
    yield "random", took / n


def touched(model: Arranged, case: Case, program: Program) -> dict[str, list[float]]:
    """Experts that at least one token of a pass chose, by kind of pass.

    `case`: what is decoded, one token a step. Returns a number for each of the passes that are
    timed together, and each layer with experts.
    """
    found = {}
    with counting(model) as own:
        compiled = Compiled(own, case, program)
        _counts.clear()
        for kind, _ in turn(compiled):
            jax.effects_barrier()
            found[kind] = [*_counts]
            _counts.clear()
    return found


def measure(
    dense: LM, mixed: LM, case: Case, floor: machine.Machine, rounds: int
) -> dict[str, Any]:
    """Time full passes and window passes of both models in turns.

    `mixed`: one of as many active parameters, all of its layers with experts; `case`: what is
    decoded, with a KV cache; one token a step; `floor`: the machine's rates, as measured in this
    run; `rounds`: of alternating turns, after one that does not count. Gives of each kind of pass
    (`full`, and windows of `masks` and `random` tokens): seconds of `dense` and `mixed`, and their
    ratio, round by round (`summarise`). Of window passes of `mixed` also experts `touched` in a
    layer (`summarise`), their `bytes` in all layers, `bytes_s` and `flops_s` at the machine's
    rates, and `of_floor`, their time over the larger of both.
    """
    lms = {"dense": dense, "mixed": mixed}
    compiled = {
        name: Compiled(lm.replicas[0].params, case, program_of(case, lm.config, lm.dtype))
        for name, lm in lms.items()
    }
    times: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in lms} for kind in PASSES}
    for i in range(rounds + 1):
        for name in lms if i % 2 == 0 else reversed([*lms]):
            for kind, took in turn(compiled[name]):
                times[kind][name].append(took)
    found: dict[str, Any] = dataclasses.asdict(case)
    for kind, every in times.items():
        each = {name: t[1:] for name, t in every.items()}
        ratio = ratios(each["mixed"], each["dense"])
        found[kind] = {name: summarise(t) for name, t in each.items()} | {"ratio": ratio}
    rule = mixed.config.runs[0].experts
    assert rule is not None
    matrices = 3 * mixed.config.d_model * rule.hidden_size * jnp.dtype(mixed.dtype).itemsize
    flops = least_work(case, mixed.config, mixed.dtype)["pass"].flops
    program = compiled["mixed"].program
    for kind, counts in touched(mixed.replicas[0].params, case, program).items():
        if kind == "full":
            continue
        assert len(counts) == passes_of(case) * mixed.config.n_layers
        size = float(np.mean(counts)) * mixed.config.n_layers * matrices
        floors = {"bytes_s": size / floor.bytes_per_s, "flops_s": flops / floor.flops_per_s}
        of_floor = summarise([t / max(floors.values()) for t in times[kind]["mixed"][1:]])
        found[kind] |= {"touched": summarise(counts), "bytes": size, "of_floor": of_floor} | floors
    return found


def text(found: Sequence[dict[str, Any]]) -> str:
    """What `measure` found, as tables."""
    both = [("rows", "pass", "dense, ms (range)", "experts, ms (range)", "ratio (range)")]
    floors = [
        (
            "rows",
            "pass",
            "experts touched in a layer (range)",
            "their bytes, GB",
            "bytes / copy rate, ms",
            "active FLOPs / matrix rate, ms",
            "pass over the larger (range)",
        )
    ]
    for row in found:
        for kind, name in PASSES.items():
            own, head = row[kind], (str(row["batch"]), name)
            dense, mixed = (spread(own[who], 2, 1e3) for who in ("dense", "mixed"))
            both.append((*head, dense, mixed, spread(own["ratio"])))
            if kind != "full":
                bytes_ms, flops_ms = (f"{own[k] * 1e3:.2f}" for k in ("bytes_s", "flops_s"))
                size, over = f"{own['bytes'] / 1e9:.3f}", spread(own["of_floor"])
                floors.append((*head, spread(own["touched"], 0), size, bytes_ms, flops_ms, over))
    return markdown_table(both, 2) + "\n" + markdown_table(floors, 2)


def run(args: argparse.Namespace) -> int:
    """Time passes with experts and without in turns, and print both."""
    report = Report(args, "benchmark of experts")
    config, count, chosen, shape = models.MODEL_60M, 64, 8, (512, 256, 32, 1)
    if args.quick:
        config, count, chosen = models.with_vocabulary(models.TINY_8B, 100), 8, 2
        shape = (32, 16, 8, 1)
    cases = [Case("dual", n, *shape) for n in args.batches or ([2] if args.quick else [1, 8])]
    dense = tokens_apart(config)
    mixed = tokens_apart(with_experts(config, count, chosen))
    measured = machine.measure("float32", args.quick)
    rounds = 1 if args.quick else args.repeats
    report.show(
        f"`{args.command}`: {models.title('dense', config)} and "
        f"{models.title('experts', mixed.config)}, {chosen} of {count} a token, float32; prompt "
        f"{shape[0]}, canvas {shape[1]}, window {shape[2]}, `dual`, one token a step; medians of "
        f"{rounds} alternating rounds; {report.found['threads']} threads, "
        f"jax {report.found['jax']}. In the same run the machine {measured.text()}."
    )
    if args.quick:
        report.show(QUICK)
    found = [measure(dense, mixed, case, measured, rounds) for case in cases]
    report.found["experts"] = {"machine_measured": dataclasses.asdict(measured), "rows": found}
    report.show(text(found), end="")
    report.save()
    return 0


main = command("scripts/timings/expert_passes.py", add_options, run, __doc__, prefix="python")
if __name__ == "__main__":
    sys.exit(main())
