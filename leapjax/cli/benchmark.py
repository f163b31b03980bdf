"""`leapjax benchmark`: timings of this machine, in one run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leapjax.cli.common import Parser, run_main

PROG = "leapjax benchmark"

DESCRIPTION = """\
Times decoding on this machine: tokens/s by KV cache and batch, the share of time in which the
device waits for the host, and continuous refilling against lock-step batches.

Every row does the same work everywhere: random prompts, a fixed schedule. Settings alternate
within the run; medians of --repeats rounds are printed with their range. Timings of a machine
that does other things are noisy: look at ratios.

  leapjax benchmark                                  embedded model and a random one of 60M
  leapjax benchmark --models 60m --batches 1,8 --json bench.json

With --against torch, leapjax and three PyTorch decoders take turns on the same weights and
prompts, with LocalLeap: a plain one (published loop, logits and float64 softmax of the whole
sequence), the same with a dual cache, and an optimised one. Speeds stand beside the share of
what this machine could do at most, measured in the same run. Where tokens or steps differ
from leapjax's, no ratio is given.

  leapjax benchmark --against torch --write docs/performance.md
  leapjax benchmark --against torch --quick          a minute, numbers without meaning

With --cost, a step is timed by canvas, batch and vocabulary, and the model of its cost that
docs/performance.md states is fitted to that.

  leapjax benchmark --cost --write docs/performance.md

With --grid N, N settings are answered in one stream, in a warm loop and in a process each.
"""

SECTION = "benchmark against torch"
COST_SECTION = "benchmark of cost"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--models", help="comma-separated: embedded, 60m, or paths (both)")
    parser.add_argument("--caches", default="none,prefix,dual", help="comma-separated")
    parser.add_argument(
        "--batches", type=_numbers, metavar="N,…", help="rows (1,8,32; against torch 1,8)"
    )
    parser.add_argument("--prompt-length", type=int, default=32, metavar="N", help="tokens (32)")
    parser.add_argument("--gen-length", type=int, default=64, metavar="N", help="canvas (64)")
    parser.add_argument("--block-length", type=int, default=32, metavar="N", help="block (32)")
    parser.add_argument(
        "--tokens-per-step", type=int, default=4, metavar="N", help="the schedule's (4)"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (5)")
    parser.add_argument(
        "--engine-requests",
        type=int,
        metavar="N",
        help="of the engine's part (48 a slot; 6 a slot with models from 10M parameters on)",
    )
    parser.add_argument(
        "--engine-repeats", type=int, metavar="N", help="its rounds (2; 1 with those)"
    )
    parser.add_argument(
        "--engine-slots",
        type=int,
        metavar="N",
        help="rows at once in the engine's part (16, as decode on CPU; 4 with those models)",
    )
    parser.add_argument(
        "--refresh-groups",
        type=_numbers,
        default=[1, 2, 4, 8],
        metavar="N,…",
        help="rows that may refresh their KV cache at once (1,2,4,8)",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON too")
    parser.add_argument("--cost", action="store_true", help="a step's cost against its size")
    parser.add_argument("--grid", type=int, metavar="N", help="N settings, three ways")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="--grid: problems")
    versus = parser.add_argument_group("against PyTorch and --cost")
    versus.add_argument("--against", choices=["torch"], help="compare with PyTorch decoders")
    versus.add_argument(
        "--cases",
        default="short,long",
        help="short: prompt 128, canvas 128, --batches; long: 512 and 256, one row, one token "
        "a step",
    )
    versus.add_argument(
        "--max-steps",
        type=int,
        default=8,
        metavar="N",
        help="of uncached decodes of large models, whose steps all cost the same (8)",
    )
    versus.add_argument(
        "--write", metavar="FILE", help="put the tables into this Markdown file, at its markers"
    )
    versus.add_argument(
        "--quick", action="store_true", help="tiny model, short lengths, nothing compiled by torch"
    )


def _report(args: argparse.Namespace) -> dict[str, Any]:
    """What every report begins with."""
    import jax

    return {
        "jax": jax.__version__,
        "device": str(jax.devices()[0].device_kind),
        "machine": platform.machine(),
        "threads": len(os.sched_getaffinity(0)),
        "arguments": vars(args),
        "models": {},
    }


def _save(report: dict[str, Any], path: str | None) -> None:
    if path:
        Path(path).write_text(json.dumps(report, indent=1, default=str) + "\n")


def run_against(args: argparse.Namespace, command: str) -> int:
    """Compare with PyTorch, and print tables."""
    import dataclasses

    import jax
    import numpy

    from leapjax.benchmarks import against, document, floor, models

    report = _report(args)
    names = (args.models or ("tiny" if args.quick else "embedded,60m")).split(",")
    rounds = 2 if args.quick else args.repeats
    sections = []

    def show(text: str) -> None:
        sections.append(text)
        print(text, end="\n\n", flush=True)

    # Before the machine is measured, so that a missing torch is said at once.
    shapes = {name: against.weights(name) for name in names}
    sides = {n: against.opponents(*shape, quick=args.quick) for n, shape in shapes.items()}
    import torch  # pyright: ignore[reportMissingImports]  (optional)

    torch.set_num_threads(report["threads"])
    machine = floor.measure(args.quick)
    report["machine_measured"] = dataclasses.asdict(machine)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "numpy": numpy.__version__}
    show(document.preamble(command, machine, versions, rounds, args.quick))
    for name, (_, config) in shapes.items():
        size = f"{name} ({models.size(config) / 1e6:.1f} M parameters)"
        report["models"][name] = []
        batches = args.batches or ([1, 3] if args.quick else [1, 8])
        for case in against.cases(
            config, args.cases.split(","), batches, args.max_steps, args.quick
        ):
            rows = against.compare(case, config, sides[name], rounds, machine)
            report["models"][name].append(dataclasses.asdict(case) | {"rows": rows})
            show(f"**{document.heading(size, case)}**")
            show(document.table(case, rows))
    if args.write:
        document.write_section(Path(args.write), SECTION, "\n\n".join(sections))
    _save(report, args.json)
    return 0


def run_cost(args: argparse.Namespace, command: str) -> int:
    """Time steps of all sizes, fit the model, and print both."""
    from tqdm import tqdm

    from leapjax.benchmarks import cost, document, models

    report = _report(args)
    lengths, batches, words = (64, 128, 256, 512), args.batches or [1, 4, 16], (32_000, 128_000)
    if args.quick:
        lengths, batches, words = (32, 64), [1, 2], (1000, 2000)
    points = cost.grid(lengths, batches, words)
    rounds = 2 if args.quick else args.repeats
    measured = cost.measure(models.MODEL_60M, points, rounds)
    rows = list(tqdm(measured, total=len(points), unit="size", disable=None))
    fitted = cost.fit(rows)
    report["cost"] = {"rows": rows} | fitted
    text = (
        f"`{command}`: width 512, 8 layers, prompt {cost.PROMPT}, block {cost.BLOCK}, float32, "
        f"{report['threads']} threads, jax {report['jax']}; medians of {rounds} decodes.\n\n"
        + cost.table(rows, fitted)
    )
    print(text)
    if args.write:
        document.write_section(Path(args.write), COST_SECTION, text)
    _save(report, args.json)
    return 0


def run_grid(args: argparse.Namespace) -> int:
    """Time a grid of settings three ways, and print what came out."""
    from leapjax.benchmarks import grid
    from leapjax.compilation import enable_cache

    enable_cache()
    report = _report(args)
    report["grid"] = grid.measure(args.grid, args.limit, 6, args.repeats)
    print(grid.lines(report["grid"]))
    _save(report, args.json)
    return 0


def run(args: argparse.Namespace) -> int:
    """Measure, and print tables."""
    from leapjax.benchmarks import decoding, models

    report = _report(args)
    for name in (args.models or "embedded,60m").split(","):
        lm = models.by_name(name)
        part: dict[str, Any] = {"parameters": models.size(lm.config), "dtype": lm.dtype}
        print(f"\n{name}: {part['parameters'] / 1e6:.1f} M parameters, {lm.dtype}")
        print(
            f"prompt {args.prompt_length}, canvas {args.gen_length}, block {args.block_length}, "
            f"{args.tokens_per_step} tokens a step; median of {args.repeats} (range)"
        )
        settings = [
            decoding.Setting(
                cache,
                batch,
                args.prompt_length,
                args.gen_length,
                args.block_length,
                args.tokens_per_step,
            )
            for batch in args.batches or [1, 8, 32]
            for cache in args.caches.split(",")
        ]
        print(f"{'batch':>6} {'cache':>7} {'tokens/s':>10} {'ms/pass':>9} {'passes':>7}  seconds")
        part["throughput"] = []
        for row in decoding.throughput(lm, settings, args.repeats):
            part["throughput"].append(row)
            t = row["seconds"]
            print(
                f"{row['batch']:>6} {row['cache']:>7} {row['tokens_per_s']:>10.0f} "
                f"{row['ms_per_pass']:>9.2f} {row['passes']:>7}  "
                f"{t['median']:.3f} ({t['min']:.3f}-{t['max']:.3f})",
                flush=True,
            )
        large = part["parameters"] >= 10e6
        # A large model takes its time: fewer rows at once, and fewer of them.
        slots = args.engine_slots or (4 if large else 16)
        requests = args.engine_requests or (6 if large else 48) * slots
        rounds = args.engine_repeats or (1 if large else 2)
        part["engine"], part["host"] = [], []
        for cache in args.caches.split(","):
            gain = decoding.against_lock_step(lm, cache, slots, requests, rounds)
            host = decoding.host_share(lm, cache, slots, min(requests, 4 * slots))
            part["engine"].append(gain)
            part["host"].append(host)
            t = gain["gain_in_time"]
            print(
                f"engine over lock-step, cache {cache}, {slots} slots, 8x spread: "
                f"{gain['gain_in_passes']:.2f}x in passes, {t['median']:.2f}x in time "
                f"({t['min']:.2f}-{t['max']:.2f}); device idle {host['outside_device']:.1%}",
                flush=True,
            )
        part["refresh_groups"] = []
        # With large models of the cached ones dual alone, whose passes are short.
        for cache in (
            c for c in args.caches.split(",") if c == "dual" or c != "none" and not large
        ):
            some = min(requests, 6 * slots)
            rows = decoding.refresh_groups(lm, cache, slots, args.refresh_groups, some, rounds)
            part["refresh_groups"] += rows
            for row in rows:
                t, ratio = row["seconds"], row["of_first"]
                print(
                    f"refresh_group {row['refresh_group']}, cache {cache}, {row['slots']} slots: "
                    f"{t['median']:.2f} s ({t['min']:.2f}-{t['max']:.2f}), "
                    f"{ratio['median']:.2f} of refresh_group {args.refresh_groups[0]}",
                    flush=True,
                )
        report["models"][name] = part
    _save(report, args.json)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `leapjax benchmark` and `scripts/benchmark.py`."""

    def command(argv: Sequence[str] | None) -> int:
        parser = Parser(prog=PROG, description=DESCRIPTION)
        add_arguments(parser)
        args = parser.parse_args(argv)
        line = shlex.join([*PROG.split(), *(sys.argv[1:] if argv is None else argv)])
        if bool(args.against) + args.cost + (args.grid is not None) > 1:
            parser.error("--against torch, --cost and --grid are runs of their own")
        if args.grid is not None:
            if args.grid < 1:
                parser.error(f"--grid is {args.grid}; expected at least 1")
            return run_grid(args)
        if args.against:
            return run_against(args, line)
        if args.cost:
            return run_cost(args, line)
        for flag in ("write", "quick"):
            if getattr(args, flag):
                parser.error(f"--{flag} goes with --against torch or --cost")
        return run(args)

    return run_main(command, argv, PROG)


if __name__ == "__main__":
    sys.exit(main())
