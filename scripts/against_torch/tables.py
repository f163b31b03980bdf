"""The tables of a comparison as Markdown."""

from typing import Any

from against_torch.comparison import Case
from leapjax.benchmarks.machine import Machine
from leapjax.benchmarks.report import QUICK
from leapjax.benchmarks.timing import spread
from leapjax.studies.tables import markdown_table

SERIOUS = 0.6  # share of the floor that an optimised opponent must reach with many rows
COLUMNS = (
    "who",
    "steps",
    "tokens a step",
    "ms a step",
    "leapjax, same cache, is faster by",
    "faster than plain torch, uncached, by",
    "share of floor",
)


def heading(model: str, case: Case) -> str:
    """What a case is, in a line."""
    how = "one token a step" if case.one_token else "LocalLeap's defaults"
    cap = "" if case.max_steps is None else f"; uncached: the first {case.max_steps} steps"
    return (
        f"{model}, batch {case.batch}, prompt {case.prompt_length} + canvas {case.gen_length}, "
        f"block {case.block_length}, {how}{cap}"
    )


def text(case: Case, rows: list[dict[str, Any]]) -> str:
    """One case as a Markdown table, and notes below it."""

    def ratio(value: dict[str, float] | None) -> str:
        return spread(value) if value else "not compared"

    cells = [
        (
            row["name"],
            str(row["steps"]),
            f"{row['tokens'] / row['steps'] / case.batch:.2f}",
            spread(row["seconds_a_step"], scale=1000),
            "" if row["name"].startswith("leapjax") else ratio(row["leapjax_gain"]),
            ratio(row["gain"]),
            f"{row['floor_share']:.0%}",
        )
        for row in rows
    ]
    notes = [f"{row['name']}: {row['notes']}." for row in rows if row["notes"]]
    notes += [
        f"{row['name']}: other tokens or steps than leapjax, so no ratio."
        for row in rows
        if not row["equal"]
    ]
    notes += [
        f"{row['name']} reaches less than {SERIOUS:.0%} of the floor, so it is no opponent."
        for row in rows
        if row["name"].startswith("torch, optimised")
        and case.batch >= 8
        and row["floor_share"] < SERIOUS
    ]
    if rows[0]["seed"]:
        notes.append(f"Prompts of seed {rows[0]['seed']}; with earlier seeds roundings decided.")
    return "\n\n".join([markdown_table([COLUMNS, *cells]).rstrip(), *notes])


def preamble(
    command: str, machine: Machine, versions: dict[str, str], rounds: int, quick: bool
) -> str:
    """How the tables came about. `machine`: as measured in the same run."""
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = (
        f"`{command}`\n\n{machine.cores} cores, float32, {libraries}. Median of {rounds} "
        "alternating rounds (range); a step is one step of every row. In the same run the machine "
        f"{machine.text()}."
    )
    return f"{text}\n\n{QUICK}" if quick else text
