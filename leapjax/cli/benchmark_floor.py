"""`leapjax benchmark --floor`: passes as shares of what the device could do at most."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from leapjax.cli.benchmark_runs import report_of, save
from leapjax.errors import UserError

SECTION = "benchmark of the floor"


def run_floor(args: argparse.Namespace) -> int:
    """Time passes and print their shares; 1 if a case could not be run."""
    import jax

    from leapjax.benchmarks import device, document, models, passes, share

    lengths = (args.prompt_length, args.gen_length, args.block_length)
    try:
        cases = passes.parse_cases(args.floor, lengths)
        options = [share.parse_options(text) for text in args.xla or [""]]
    except ValueError as e:
        raise UserError(f"--floor or --xla: {e}") from e
    usual = "layers" if jax.default_backend() == "gpu" else "stacked"
    arrangements = (args.weights or usual).split(",")
    if unknown := set(arrangements) - set(share.ARRANGEMENTS):
        raise UserError(
            f"--weights: {', '.join(sorted(unknown))}; choose of {', '.join(share.ARRANGEMENTS)}"
        )
    # The stacks are gone after `layers`.
    arrangements = [a for a in share.ARRANGEMENTS if a in arrangements]
    keep = Path(args.keep) if args.keep else None
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    report, sections, failed = report_of(args), [], 0

    def show(text: str, end: str = "\n\n") -> None:
        sections.append(text + end)
        print(text, end=end, flush=True)

    for name in (args.models or ("embedded,60m" if not args.quick else "llada-8b")).split(","):
        lm = models.by_name(name, quick=args.quick)
        machine = device.measure(lm.dtype, args.quick)
        kind = str(jax.devices()[0].device_kind)
        show(share.preamble(args.command, machine, kind, jax.__version__, args))
        if args.quick:
            show("A quick run, to try the code: its numbers mean nothing.")
        show(f"**{name} ({models.size(lm.config) / 1e6:.1f} M parameters), {lm.dtype}**")
        part = {"machine_measured": dataclasses.asdict(machine), "dtype": lm.dtype, "rows": []}
        report["models"][name] = part
        show(share.HEADER, end="\n")
        for row in share.rows(
            lm,
            cases,
            arrangements,
            options,
            machine,
            args.tokens_per_step,
            args.repeats,
            keep,
        ):
            part["rows"].append(row)
            failed += "error" in row
            show(share.lines(row), end="\n")
            # After every row: a run that is cut off leaves what it has.
            save(report, args.json)
            if keep is not None:
                save(report, keep / "floor.json")
        show("", end="\n")
        del lm
    if args.write:
        document.write_section(Path(args.write), SECTION, "".join(sections))
    return 1 if failed else 0
