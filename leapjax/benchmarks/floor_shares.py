"""Passes of whole models as shares of the device's floor: what is timed, and the table.

The floor of a pass is the time that its least work (`leapjax.planning.work`) takes at the rates
that the device was measured to reach in the same run. Each case is compiled for every arrangement
of the weights and every set of compiler options. What can't be compiled or doesn't fit is said in
its row; the others go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from leapjax.benchmarks import op_profile
from leapjax.benchmarks.machine import Machine
from leapjax.benchmarks.pass_timing import Compiled, least_work, measure, passes_of, program_of
from leapjax.benchmarks.timing import spread
from leapjax.benchmarks.workload import Case
from leapjax.lm import LM
from leapjax.ops.split import forms
from leapjax.planning.work import Work
from leapjax.studies.tables import markdown_table

PROFILED_FULL, PROFILED_WINDOW = 2, 10  # passes


def parse_options(text: str) -> dict[str, str | bool]:
    """`name=value;name=value` -> compiler options; a leading `--` may stay.

    Raises:
      ValueError: not of this form.
    """
    options: dict[str, str | bool] = {}
    for part in filter(None, text.split(";")):
        name, equals, value = part.removeprefix("--").partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not NAME=VALUE")
        options[name] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def shares(work: Work, machine: Machine, seconds: float) -> dict[str, Any]:
    """How some work's time compares with what the device could do at most.

    Returns:
      `floor_s`, what `bound` it is by, `share` of the floor, and the rates that were reached as
      shares of those measured.
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
    options: Sequence[dict[str, str | bool]],
    machine: Machine,
    rounds: int,
    keep: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Time every case, arrangement and set of options.

    Args:
      lm: the model; its parameters can't be used any more after `layers`. One loaded to a GPU has
        no stacks: `layers` is all there is.
      cases: what is decoded.
      arrangements: of the weights: `stacked`, as given, and `layers`, taken apart as on a GPU
        (`leapjax.ops.split`); in that order.
      options: of the compiler, in turn.
      machine: as measured for the model's dtype.
      rounds: of alternating turns.
      keep: a folder for the programs and the profiles' summaries; None takes no profile.

    Yields:
      A row each: what it is, and `measure`'s timings with `shares`, or `error`.
    """
    for arrangement, params in forms(lm.replicas[0].params, arrangements, lm):
        for case in cases:
            program = program_of(case, lm.config, lm.dtype)
            work = least_work(case, lm.config, lm.dtype)
            for some in options:
                row = dataclasses.asdict(case) | {"weights": arrangement, "options": some}
                try:
                    compiled = Compiled(params, case, program, some)
                    row |= {"compile_s": compiled.seconds} | measure(compiled, rounds)
                    row["shares"] = {
                        name: shares(each, machine, row[name]["median"])
                        for name, each in work.items()
                    }
                    if keep is not None:
                        row["profile_ms"] = _keep(keep, title(row), compiled)
                except jax.errors.JaxRuntimeError as e:
                    row["error"] = str(e).splitlines()[0]
                yield row
        del params


def _keep(folder: Path, name: str, compiled: Compiled) -> dict[str, float]:
    """Write a case's programs and the summary of a profile of its passes; returns the latter."""
    text = compiled.step.as_text() or ""
    with zipfile.ZipFile(folder / "programs.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        for who, content in (("step", text), ("bare", compiled.bare.as_text() or "")):
            archive.writestr(f"{name} {who}.txt".replace(" ", "_"), content)
    n = PROFILED_WINDOW if compiled.case.stores else PROFILED_FULL
    n = min(n, passes_of(compiled.case))
    state, _ = compiled.run(compiled.begin(), 1)  # with a cache the full pass
    found = op_profile.profile(lambda: compiled.run(state, n))
    parts, summary = op_profile.summary(found, text, n)
    with open(folder / "kernels.txt", "a") as file:
        file.write(f"{name}: {n} passes\n{summary}\n\n")
    return parts


def title(row: dict[str, Any]) -> str:
    """A row's name, such as `dual 1 layers`."""
    options = " ".join(f"{k}={v}" for k, v in row["options"].items())
    return f"{row['cache']} {row['batch']} {row['weights']} {options}".strip()


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
    options = "".join(f"; `{k}={v}`" for k, v in row["options"].items())
    head = [f"{row['cache']}, {row['batch']}", f"{row['weights']}{options}"]
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
    """How the table came about.

    Args:
      machine: as measured in the same run.
      args: of the command.
    """
    return (
        f"`{args.command}`\n\n{jax.devices()[0].device_kind}, jax {jax.__version__}. Prompt "
        f"{args.prompt_length}, canvas {args.gen_length}, block and window {args.block_length}; "
        f"one token a step where passes are timed, {args.tokens_per_step} a step for tokens/s; "
        f"medians of {args.repeats} alternating rounds. "
        f"In the same run the device {machine.text()}."
    )
