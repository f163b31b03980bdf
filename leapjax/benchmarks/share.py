"""Passes of whole models as shares of the floor: which programs are timed, and the tables.

Each case is compiled for every arrangement of the weights and every set of compiler options. What
can't be compiled or doesn't fit is said in its row; the others go on.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from leapjax.benchmarks import kernels, passes
from leapjax.benchmarks.floor import Machine, Work
from leapjax.caches import CACHES
from leapjax.lm import LM
from leapjax.models import layout

ARRANGEMENTS = ("stacked", "layers")
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
    cases: Sequence[passes.Case],
    arrangements: Sequence[str],
    options: Sequence[dict[str, str | bool]],
    machine: Machine,
    tokens_per_step: int,
    rounds: int,
    keep: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Time every case, arrangement and set of options.

    Args:
      lm: the model; its parameters can't be used any more after `layers`. One loaded to a GPU has
        no stacks: `layers` is all there is.
      cases: what is decoded.
      arrangements: of the weights: `stacked`, as given, and `layers`, taken apart as on a GPU
        (`layout.unstack`); in that order.
      options: of the compiler, in turn.
      machine: as measured for the model's dtype.
      tokens_per_step: of whole decodes.
      rounds: of alternating turns.
      keep: a folder for the programs and the profiles' summaries; None takes no profile.

    Yields:
      A row each: what it is, and `passes.measure`'s timings with `shares`, or `error`.
    """
    apart = "layers" not in lm.params
    for arrangement in arrangements if not apart else ("layers",):
        if arrangement == "stacked":
            params = layout.arrange(lm.params, lm.config, lm.dtype)
        else:
            params = layout.unstack(lm.params)
        for case in cases:
            for some in options:
                row = dataclasses.asdict(case) | {"weights": arrangement, "options": some}
                try:
                    row |= _measure(lm, params, case, row, machine, tokens_per_step, rounds, keep)
                except jax.errors.JaxRuntimeError as e:
                    row["error"] = str(e).splitlines()[0]
                yield row
        del params


def _measure(lm, params, case, row, machine, tokens_per_step, rounds, keep) -> dict[str, Any]:
    program = case.program(lm.config, lm.dtype)
    compiled = passes.compile_both(params, case, program, row["options"])
    out: dict[str, Any] = {"compile_s": compiled.seconds}
    out |= passes.measure(params, case, program, compiled, tokens_per_step, rounds)
    out["shares"] = {
        name: shares(work, machine, out[name]["median"])
        for name, work in passes.floors(case, lm.config, lm.dtype).items()
    }
    if keep is not None:
        out["profile_ms"] = _keep(keep, title(row), params, case, program, compiled)
    return out


def _keep(folder: Path, name: str, params, case, program, compiled) -> dict[str, float]:
    """Write a case's programs and the summary of a profile of its passes; returns the latter."""
    text = compiled.step.as_text()
    with zipfile.ZipFile(folder / "programs.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        for who, content in (("step", text), ("bare", compiled.bare.as_text())):
            archive.writestr(f"{name} {who}.txt".replace(" ", "_"), content)
    state = passes.begin(case, program, 1)
    n = min(PROFILED_WINDOW if case.stores else PROFILED_FULL, case.passes)

    def run(count):
        nonlocal state
        state = compiled.step(params, state, jax.numpy.int32(count), jax.numpy.int32(case.batch))
        jax.block_until_ready(state)

    run(1)  # with a cache the full pass
    found = kernels.profile(lambda: run(n))
    parts, summary = kernels.summary(found, text, n)
    with open(folder / "kernels.txt", "a") as file:
        file.write(f"{name}: {n} passes\n{summary}\n\n")
    return parts


def title(row: dict[str, Any]) -> str:
    """A row's name, such as `dual 1 layers`."""
    options = " ".join(f"{k}={v}" for k, v in row["options"].items())
    return f"{row['cache']} {row['batch']} {row['weights']} {options}".strip()


HEADER = (
    "| cache, rows | weights | pass | ms (range) | floor, ms, by | share of floor "
    "| model alone, ms | besides the model (range) | tokens/s |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---:|"
)


def lines(row: dict[str, Any]) -> str:
    """A row as lines of the table: one for each kind of pass."""
    options = "".join(f"; `{k}={v}`" for k, v in row["options"].items())
    head = f"| {row['cache']}, {row['batch']} | {row['weights']}{options} "
    if "error" in row:
        return f"{head}| {row['error'][:200].replace('|', ' ')} |||||||"
    out = []
    for name, share in row["shares"].items():
        t, model, outside = row[name], row["model"], row["outside"]
        full = not CACHES[row["cache"]].stores or name == "full_pass"
        cells = [
            "full" if full else "window",
            f"{1e3 * t['median']:.2f} ({1e3 * t['min']:.2f}–{1e3 * t['max']:.2f})",
            f"{1e3 * share['floor_s']:.2f}, {share['bound']}",
            f"{share['share']:.1%}",
        ]
        if name == "pass":
            cells += [
                f"{1e3 * model['median']:.2f}",
                f"{outside['median']:.1%} ({outside['min']:.1%} to {outside['max']:.1%})",
                f"{row['tokens_per_s']:.0f}",
            ]
        else:
            cells += ["", "", ""]
        out.append(f"{head}| {' | '.join(cells)} |")
    return "\n".join(out)


def preamble(command: str, machine: Machine, device: str, version: str, arguments: Any) -> str:
    """How the table came about.

    Args:
      command: as it was called.
      machine: as measured in the same run.
      device: its name.
      version: of jax.
      arguments: the command's.
    """
    read = machine.read_bytes_per_s
    lengths = (
        f"Prompt {arguments.prompt_length}, canvas {arguments.gen_length}, block and window "
        f"{arguments.block_length}"
    )
    return (
        f"`{command}`\n\n{device}, jax {version}. {lengths}; one token a step where passes are "
        f"timed, {arguments.tokens_per_step} a step for tokens/s; medians of {arguments.repeats} "
        f"alternating rounds. In the same run the device copied {machine.bytes_per_s / 1e9:.1f} "
        f"GB/s (array of {machine.copy_bytes / 1e9:.2f} GB"
        + (f"; it read {read / 1e9:.1f} GB/s" if read else "")
        + f") and multiplied at {machine.flops_per_s / 1e12:.2f} TFLOP/s ({machine.flops_by})."
    )
