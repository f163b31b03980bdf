"""What `leapjax benchmark` runs: decoding, and the runs of their own."""

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

from leapjax.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run_against(args: argparse.Namespace) -> int:
    """Compare with PyTorch, whose decoders are in a checkout only, and print tables."""
    if not (SCRIPTS / "against_torch").is_dir():
        raise UserError(
            "--against torch: the PyTorch decoders are no part of the installed package; run "
            "`python scripts/benchmark.py --against torch` in a clone of leapjax's repository"
        )
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return importlib.import_module("against_torch.command").run(args)


def run_floor(args: argparse.Namespace) -> int:
    """Time passes and print their shares; 1 if a case could not be run."""
    from leapjax.benchmarks import floor_shares, machine, models, pass_timing
    from leapjax.benchmarks.report import QUICK, Report
    from leapjax.ops import hardware, split

    lengths = (args.prompt_length, args.gen_length, args.block_length)
    try:
        cases = pass_timing.parse_cases(args.floor, lengths, args.tokens_per_step)
    except ValueError as e:
        raise UserError(f"--floor: {e}") from e
    asked = (args.weights or hardware.defaults().weights).split(",")
    known = split.FORMS
    if unknown := set(asked) - set(known):
        raise UserError(f"--weights: {', '.join(sorted(unknown))}; choose of {', '.join(known)}")
    arrangements = [a for a in known if a in asked]  # the stacks are gone after `layers`
    report, failed = Report(args, "benchmark of the floor"), 0
    for name in (args.models or ("llada-8b" if args.quick else "embedded,60m")).split(","):
        lm = models.by_name(name, quick=args.quick)
        measured = machine.measure(lm.dtype, args.quick)
        report.show(floor_shares.preamble(measured, args))
        if args.quick:
            report.show(QUICK)
        report.show(f"**{models.title(name, lm.config)}, {lm.dtype}**")
        rows = []
        report.found["models"][name] = {
            "machine_measured": dataclasses.asdict(measured),
            "dtype": lm.dtype,
            "rows": rows,
        }
        report.show(floor_shares.HEADER, end="")
        for row in floor_shares.rows(lm, cases, arrangements, measured, args.repeats):
            rows.append(row)
            failed += "error" in row
            report.show(floor_shares.lines(row), end="\n")
            report.save()
        report.show("", end="\n")
        del lm
    report.save()
    return 1 if failed else 0


def run_receipt(args: argparse.Namespace) -> int:
    """Make a receipt and write it; a bad mesh or file is refused before anything is timed."""
    from leapjax.benchmarks import receipt
    from leapjax.outputs import check_output
    from leapjax.sharding import parse
    from leapjax.studies.files import json_text, write

    if args.receipt != "-":
        check_output(args.receipt, True, (".json",), "receipt")
    mesh = parse(args.mesh) if args.mesh else None
    text = json_text(receipt.make(mesh, args.repeats, args.quick))
    if args.receipt == "-":
        print(text, end="")
    else:
        write(Path(args.receipt), text)
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Print the table of a receipt; raises UserError if it is none."""
    from leapjax.benchmarks import receipt_fields

    print(receipt_fields.table([receipt_fields.read(args.check_receipt)]), end="")
    return 0


def run_decoding(args: argparse.Namespace) -> int:
    """Measure whole decodes, the engine's refilling and the host's share, and print tables."""
    from leapjax.benchmarks import models
    from leapjax.benchmarks.report import QUICK, Report

    report = Report(args)
    if args.quick:
        report.show(QUICK)
    for name in (args.models or ("embedded" if args.quick else "embedded,60m")).split(","):
        lm = models.by_name(name)
        report.show(f"{models.title(name, lm.config)}, {lm.dtype}", end="\n")
        report.found["models"][name] = _decoding(args, lm, report.show)
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
    return part
