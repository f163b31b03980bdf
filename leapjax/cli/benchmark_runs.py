"""What `leapjax benchmark` runs: decoding, and the runs of their own but one (`--floor`)."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

from leapjax.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run_against(args: argparse.Namespace) -> int:
    """Compare with PyTorch, and print tables.

    Raises:
      UserError: this is not a checkout, which alone holds the PyTorch decoders, or torch is not
        installed.
    """
    if not (SCRIPTS / "against_torch").is_dir():
        raise UserError(
            "--against torch: the PyTorch decoders are no part of the installed package; run "
            "`python scripts/benchmark.py --against torch` in a clone of leapjax's repository"
        )
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return importlib.import_module("against_torch.command").run(args)


def run_cost(args: argparse.Namespace) -> int:
    """Time steps of all sizes, fit the model, and print both."""
    from leapjax.benchmarks import cost_model, models
    from leapjax.benchmarks.report import Report
    from leapjax.progress import counted

    report = Report(args, "benchmark of cost")
    lengths, batches, words = (64, 128, 256, 512), args.batches or [1, 4, 16], (32_000, 128_000)
    if args.quick:
        lengths, batches, words = (32, 64), [1, 2], (1000, 2000)
    points = cost_model.every_point(lengths, batches, words)
    rounds, rows = 2 if args.quick else args.repeats, []
    with counted("cost", len(points), "size") as shown:
        for row in cost_model.measure(models.MODEL_60M, points, rounds):
            rows.append(row)
            shown(len(rows))
    fitted = cost_model.fit(rows)
    report.found["cost"] = {"rows": rows} | fitted
    report.show(
        f"`{args.command}`: width 512, 8 layers, prompt {cost_model.PROMPT}, "
        f"block {cost_model.BLOCK}, float32, {report.found['threads']} threads, "
        f"jax {report.found['jax']}; medians of {rounds} decodes."
    )
    report.show(cost_model.text(rows, fitted), end="")
    report.save()
    return 0


def run_experts(args: argparse.Namespace) -> int:
    """Time passes with experts and without in turns, and print both."""
    from leapjax.benchmarks import expert_passes, machine, models
    from leapjax.benchmarks.report import QUICK, Report
    from leapjax.benchmarks.workload import Case

    report = Report(args, "benchmark of experts")
    config, count, chosen = models.MODEL_60M, 64, 8
    if args.quick:
        config, count, chosen = models.with_vocabulary(models.TINY_8B, 100), 8, 2
    shape = (args.prompt_length, args.gen_length, args.block_length, 1)
    cases = [Case("dual", n, *shape) for n in args.batches or ([2] if args.quick else [1, 8])]
    dense = expert_passes.tokens_apart(config)
    mixed = expert_passes.tokens_apart(expert_passes.with_experts(config, count, chosen))
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
    found = list(expert_passes.rows(dense, mixed, cases, measured, rounds))
    report.found["experts"] = {"machine_measured": dataclasses.asdict(measured), "rows": found}
    report.show(expert_passes.text(found), end="")
    report.save()
    return 0


def run_grid(args: argparse.Namespace) -> int:
    """Time a grid of settings three ways, and print what came out."""
    from leapjax.benchmarks import settings_grid
    from leapjax.benchmarks.report import Report
    from leapjax.compilation import enable_cache

    enable_cache()
    report = Report(args)
    report.found["grid"] = settings_grid.measure(args.grid, args.limit, 6, args.repeats)
    report.show(settings_grid.text(report.found["grid"]), end="\n")
    report.save()
    return 0


def run_decoding(args: argparse.Namespace) -> int:
    """Measure whole decodes, the engine's refilling and the host's share, and print tables."""
    from leapjax.benchmarks import models
    from leapjax.benchmarks.report import QUICK, Report

    report = Report(args)
    if args.quick:
        report.show(QUICK)
    measure = _refreshes if args.refresh_groups else _decoding
    for name in (args.models or ("embedded" if args.quick else "embedded,60m")).split(","):
        lm = models.by_name(name)
        report.show(f"{models.title(name, lm.config)}, {lm.dtype}", end="\n")
        report.found["models"][name] = measure(args, lm, report.show)
        report.show("", end="\n")
    report.save()
    return 0


def _decoding(args: argparse.Namespace, lm, show) -> dict[str, Any]:
    """The measurements of one model; `show` takes each as a text."""
    from leapjax.benchmarks import decoding, models
    from leapjax.benchmarks.timing import spread
    from leapjax.benchmarks.workload import Case
    from leapjax.caches import CACHES
    from leapjax.studies.tables import text_table

    size = models.size(lm.config)
    caches = (args.caches or ("none,dual" if args.quick else ",".join(CACHES))).split(",")
    batches = args.batches or ([1, 3] if args.quick else [1, 8, 32])
    rounds = min(args.repeats, 2) if args.quick else args.repeats
    shape = (args.prompt_length, args.gen_length, args.block_length, args.tokens_per_step)
    show(
        "prompt {}, canvas {}, block {}, {} tokens a step; ".format(*shape)
        + f"median of {rounds} (range)"
    )
    part: dict[str, Any] = {"parameters": size, "dtype": lm.dtype, "engine": [], "host": []}
    cases = [Case(cache, batch, *shape) for batch in batches for cache in caches]
    part["throughput"] = rows = decoding.throughput(lm, cases, rounds)
    cells = [("cache", "rows", "tokens/s", "ms a pass", "passes", "seconds (range)")]
    for row in rows:
        rate, ms = f"{row['tokens_per_s']:.0f}", f"{row['ms_per_pass']:.2f}"
        some = (row["cache"], str(row["batch"]), rate, ms, str(row["passes"]))
        cells.append((*some, spread(row["seconds"], 3)))
    show(text_table(cells, 1), end="\n")
    # A large model takes its time: fewer rows at once, and fewer of them.
    large = size >= 10e6
    few = large or args.quick
    slots = args.engine_slots or (4 if few else 16)
    requests = args.engine_requests or (6 if few else 48) * slots
    rounds = args.engine_repeats or (1 if few else 2)
    for cache in caches:
        if models.for_cache(lm, cache, args.block_length) is not lm:
            continue  # the twin's
        gain = decoding.against_lock_step(lm, cache, slots, requests, rounds)
        host = decoding.host_share(lm, cache, slots, min(requests, 4 * slots))
        part["engine"].append(gain)
        part["host"].append(host)
        show(
            f"engine over lock-step, cache {cache}, {slots} slots, 8x spread: "
            f"{gain['gain_in_passes']:.2f}x in passes, {spread(gain['gain_in_time'])}x in time; "
            f"device idle {host['outside_device']:.1%}",
            end="\n",
        )
    return part | _refreshes(args, lm, show)


def _refreshes(args: argparse.Namespace, lm, show) -> dict[str, Any]:
    """How many rows should refresh together; the only part with `--refresh-groups`."""
    from leapjax.benchmarks import decoding, models
    from leapjax.benchmarks.timing import spread
    from leapjax.benchmarks.workload import ragged_requests
    from leapjax.caches import CACHES

    few = models.size(lm.config) >= 10e6 or args.quick
    slots = args.engine_slots or (4 if few else 16)
    rounds = args.engine_repeats or (1 if few else 2)
    groups = args.refresh_groups or ([1, 2] if args.quick else [1, 2, 4])
    part: dict[str, Any] = {"refresh_groups": []}
    given = args.caches.split(",") if args.caches else CACHES
    stored = [c for c in given if CACHES[c].refreshes]
    # The dual cache alone, whose passes are short, unless others are asked for.
    for cache in stored if args.caches else stored[-1:]:
        # Prompts of one length with --quick, whose programs are compiled soon.
        prompts = (97, 128) if args.quick else (64, 512)
        count = args.engine_requests or 2 * slots
        requests = ragged_requests(lm.config, cache, count, *prompts)
        rows = decoding.refresh_groups(lm, cache, slots, groups, requests, rounds)
        part["refresh_groups"] += rows
        for row in rows:
            show(
                f"refresh_group {row['refresh_group']}, cache {cache}, {slots} slots: "
                f"{row['tokens_per_s']:.0f} tokens/s, {spread(row['seconds'])} s, "
                f"{row['of_first']['median']:.2f} of refresh_group {groups[0]}; "
                f"{row['refreshed_rows']} rows refreshed, {row['refresh_rows_wanted']} wanted, "
                f"about {row['estimated_share_of_time']:.0%} of the time",
                end="\n",
            )
    return part
