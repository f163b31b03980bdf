"""`leapjax benchmark --floor`: passes as shares of what the device could do at most."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from leapjax.errors import UserError


def run_floor(args: argparse.Namespace) -> int:
    """Time passes and print their shares; 1 if a case could not be run."""
    from leapjax.benchmarks import floor_shares, machine, models, pass_timing
    from leapjax.benchmarks.report import QUICK, Report
    from leapjax.ops import hardware, split

    lengths = (args.prompt_length, args.gen_length, args.block_length)
    try:
        cases = pass_timing.parse_cases(args.floor, lengths, args.tokens_per_step)
        options = [floor_shares.parse_options(text) for text in args.xla or [""]]
    except ValueError as e:
        raise UserError(f"--floor or --xla: {e}") from e
    asked = (args.weights or hardware.defaults().weights).split(",")
    known = split.FORMS
    if unknown := set(asked) - set(known):
        raise UserError(f"--weights: {', '.join(sorted(unknown))}; choose of {', '.join(known)}")
    arrangements = [a for a in known if a in asked]  # the stacks are gone after `layers`
    keep = Path(args.keep) if args.keep else None
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
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
        for row in floor_shares.rows(
            lm, cases, arrangements, options, measured, args.repeats, keep
        ):
            rows.append(row)
            failed += "error" in row
            report.show(floor_shares.lines(row), end="\n")
            report.save(*([keep / "floor.json"] if keep else []))
        report.show("", end="\n")
        del lm
    report.save()
    return 1 if failed else 0
