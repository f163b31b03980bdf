"""Passes of whole models as shares of the device's floor: what is timed, and the table.

The floor of a pass is the time that its least work (`leapjax.planning.work`) takes at the rates
that the device was measured to reach in the same run. Each case is compiled for every arrangement
of the weights. What can't be compiled or doesn't fit is said in its row; the others go on.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from leapjax.benchmarks.machine import Machine
from leapjax.benchmarks.pass_timing import Compiled, least_work, measure, program_of
from leapjax.benchmarks.timing import spread
from leapjax.benchmarks.workload import Case
from leapjax.lm import LM
from leapjax.ops.split import forms
from leapjax.planning.work import Work
from leapjax.studies.tables import markdown_table


def shares(work: Work, machine: Machine, seconds: float) -> dict[str, Any]:
    """How some work's time compares with what the device could do at most.

    Returns `floor_s`, what `bound` it is by, `share` of the floor, and the rates that were reached
    as shares of those measured.
    """
    floor = machine.seconds(work)
    by_bytes = work.bytes / machine.bytes_per_s >= work.flops / machine.flops_per_s
    reached = work.bytes / seconds
    return {
        "floor_s": floor,
        "bound": "bytes" if by_bytes else "FLOPs",
        "share": floor / seconds,
        "of_copy": reached / machine.bytes_per_s,
        "of_read": reached / machine.read_bytes_per_s if machine.read_bytes_per_s else None,
        "of_matrices": work.flops / seconds / machine.flops_per_s,
    }


def rows(
    lm: LM,
    cases: Sequence[Case],
    arrangements: Sequence[str],
    machine: Machine,
    rounds: int,
) -> Iterator[dict[str, Any]]:
    """Time every case and arrangement.

    `lm`: the model; its parameters can't be used any more after `layers`. One loaded to a GPU has
    no stacks: `layers` is all there is. `arrangements` of the weights: `stacked`, as given, and
    `layers`, taken apart as on a GPU (`leapjax.ops.split`); in that order; `machine`: as measured
    for the model's dtype. Yields a row for each: what it is, and `measure`'s timings with `shares`,
    or `error`.
    """
    for arrangement, params in forms(lm.replicas[0].params, arrangements, lm):
        for case in cases:
            program = program_of(case, lm.config, lm.dtype)
            work = least_work(case, lm.config, lm.dtype)
            row: dict[str, Any] = dataclasses.asdict(case) | {"weights": arrangement}
            try:
                compiled = Compiled(params, case, program)
                row |= {"compile_s": compiled.seconds} | measure(compiled, rounds)
                row["shares"] = {
                    name: shares(each, machine, row[name]["median"]) for name, each in work.items()
                }
            except jax.errors.JaxRuntimeError as e:
                row["error"] = str(e).splitlines()[0]
            yield row
        del params


COLUMNS = (
    "cache, rows",
    "weights",
    "pass",
    "ms (range)",
    "floor, ms, by",
    "share of floor",
    "model alone, ms",
    "besides the model (range)",
    "tokens/s",
)
HEADER = markdown_table([COLUMNS], 3)


def lines(row: dict[str, Any]) -> str:
    """A row as lines of the table: one for each kind of pass."""
    head = [f"{row['cache']}, {row['batch']}", row["weights"]]
    cells = []
    if "error" in row:
        cells.append([*head, row["error"][:200].replace("|", " "), *[""] * 6])
    for name, share in ({} if cells else row["shares"]).items():
        outside, alone = row["outside"], ["", "", ""]
        if name == "pass":
            low, high = outside["min"], outside["max"]
            alone = [
                f"{1e3 * row['model']['median']:.2f}",
                f"{outside['median']:.1%} ({low:.1%} to {high:.1%})",
                f"{row['tokens_per_s']:.0f}",
            ]
        windows = "full_pass" in row["shares"] and name == "pass"
        cells.append(
            [
                *head,
                "window" if windows else "full",
                spread(row[name], 2, 1e3),
                f"{1e3 * share['floor_s']:.2f}, {share['bound']}",
                f"{share['share']:.1%}",
                *alone,
            ]
        )
    return "\n".join("| " + " | ".join(each) + " |" for each in cells)


def preamble(machine: Machine, args: argparse.Namespace) -> str:
    """How the table came about. `machine`: as measured in the same run."""
    return (
        f"`{args.command}`\n\n{jax.devices()[0].device_kind}, jax {jax.__version__}. Prompt "
        f"{args.prompt_length}, canvas {args.gen_length}, block and window {args.block_length}; "
        f"one token a step where passes are timed, {args.tokens_per_step} a step for tokens/s; "
        f"medians of {args.repeats} alternating rounds. "
        f"In the same run the device {machine.text()}."
    )
