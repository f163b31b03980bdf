"""What `leapjax benchmark` runs: decoding, and the runs of their own but one (`--floor`)."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

SECTION = "benchmark against torch"
COST_SECTION = "benchmark of cost"


def report_of(args: argparse.Namespace) -> dict[str, Any]:
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


def save(report: dict[str, Any], path: str | Path | None) -> None:
    """Write a report as JSON, if a file is named."""
    if path:
        Path(path).write_text(json.dumps(report, indent=1, default=str) + "\n")


def run_against(args: argparse.Namespace) -> int:
    """Compare with PyTorch, and print tables."""
    import dataclasses

    import jax
    import numpy

    from leapjax.benchmarks import against, document, floor, models

    report = report_of(args)
    names = (args.models or ("tiny" if args.quick else "embedded,60m")).split(",")
    rounds = 2 if args.quick else args.repeats
    pause = 0.0 if args.quick else against.PAUSE
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
    show(document.preamble(args.command, machine, versions, rounds, args.quick))
    for name, (_, config) in shapes.items():
        size = f"{name} ({models.size(config) / 1e6:.1f} M parameters)"
        report["models"][name] = []
        batches = args.batches or ([1, 3] if args.quick else [1, 8])
        for case in against.cases(
            config, args.cases.split(","), batches, args.max_steps, args.quick
        ):
            rows = against.compare(case, config, sides[name], rounds, machine, pause=pause)
            report["models"][name].append(dataclasses.asdict(case) | {"rows": rows})
            show(f"**{document.heading(size, case)}**")
            show(document.table(case, rows))
            # After every case: a run that is cut off leaves what it has.
            if args.write:
                document.write_section(Path(args.write), SECTION, "\n\n".join(sections))
    save(report, args.json)
    return 0


def run_cost(args: argparse.Namespace) -> int:
    """Time steps of all sizes, fit the model, and print both."""
    from tqdm import tqdm

    from leapjax.benchmarks import cost, document, models

    report = report_of(args)
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
        f"`{args.command}`: width 512, 8 layers, prompt {cost.PROMPT}, block {cost.BLOCK}, "
        f"float32, {report['threads']} threads, jax {report['jax']}; "
        f"medians of {rounds} decodes.\n\n" + cost.table(rows, fitted)
    )
    print(text)
    if args.write:
        document.write_section(Path(args.write), COST_SECTION, text)
    save(report, args.json)
    return 0


def run_grid(args: argparse.Namespace) -> int:
    """Time a grid of settings three ways, and print what came out."""
    from leapjax.benchmarks import grid
    from leapjax.compilation import enable_cache

    enable_cache()
    report = report_of(args)
    report["grid"] = grid.measure(args.grid, args.limit, 6, args.repeats)
    print(grid.lines(report["grid"]))
    save(report, args.json)
    return 0


def run_decoding(args: argparse.Namespace) -> int:
    """Measure, and print tables."""
    from leapjax.benchmarks import decoding, models
    from leapjax.caches import CACHES

    report = report_of(args)
    caches = (args.caches or ("none,dual" if args.quick else ",".join(CACHES))).split(",")
    batches = args.batches or ([1, 3] if args.quick else [1, 8, 32])
    repeats = min(args.repeats, 2) if args.quick else args.repeats
    groups = args.refresh_groups or ([1, 4] if args.quick else [1, 2, 4, 8])
    if args.quick:
        print("A quick run, to try the code: its numbers mean nothing.")
    for name in (args.models or ("embedded" if args.quick else "embedded,60m")).split(","):
        lm = models.by_name(name)
        part: dict[str, Any] = {"parameters": models.size(lm.config), "dtype": lm.dtype}
        print(f"\n{name}: {part['parameters'] / 1e6:.1f} M parameters, {lm.dtype}")
        print(
            f"prompt {args.prompt_length}, canvas {args.gen_length}, block {args.block_length}, "
            f"{args.tokens_per_step} tokens a step; median of {repeats} (range)"
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
            for batch in batches
            for cache in caches
        ]
        print(f"{'batch':>6} {'cache':>7} {'tokens/s':>10} {'ms/pass':>9} {'passes':>7}  seconds")
        part["throughput"] = []
        for row in decoding.throughput(lm, settings, repeats):
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
        few = large or args.quick
        slots = args.engine_slots or (4 if few else 16)
        requests = args.engine_requests or (6 if few else 48) * slots
        rounds = args.engine_repeats or (1 if few else 2)
        part["engine"], part["host"] = [], []
        for cache in caches:
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
        stored = [c for c in caches if CACHES[c].stores]
        # With large models the last one alone: the dual cache, whose passes are short.
        for cache in stored[-1:] if large else stored:
            some = min(requests, 6 * slots)
            rows = decoding.refresh_groups(lm, cache, slots, groups, some, rounds)
            part["refresh_groups"] += rows
            for row in rows:
                t, ratio = row["seconds"], row["of_first"]
                print(
                    f"refresh_group {row['refresh_group']}, cache {cache}, {row['slots']} slots: "
                    f"{t['median']:.2f} s ({t['min']:.2f}-{t['max']:.2f}), "
                    f"{ratio['median']:.2f} of refresh_group {groups[0]}",
                    flush=True,
                )
        report["models"][name] = part
    save(report, args.json)
    return 0
