"""A benchmark's table as Markdown, and its place in a document."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from leapjax.benchmarks.against import Case
from leapjax.benchmarks.floor import Machine
from leapjax.errors import UserError

SERIOUS = 0.6  # share of the floor that an optimised opponent must reach with many rows


def markers(name: str) -> tuple[str, str]:
    """The lines before and after a generated section."""
    return f"<!-- {name}: begin, written by the command below -->", f"<!-- {name}: end -->"


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between a section's markers; the rest stays byte for byte.

    Args:
      path: a Markdown file; without markers they are added at its end.
      name: of the section.
      text: what goes between them.

    Raises:
      UserError: the file can't be read or written, or its markers are not one pair.
    """
    begin, end = markers(name)
    path = path.resolve()  # a link is written through
    try:
        # Bytes, so that other line ends than ours survive.
        old = path.read_bytes().decode() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: can't be read: {e}") from e
    section = f"{begin}\n{text.strip()}\n{end}"
    counts = old.count(begin), old.count(end)
    if counts == (1, 1) and old.index(begin) < old.index(end):
        before, after = old[: old.index(begin)], old[old.index(end) + len(end) :]
    elif counts == (0, 0):
        gap = "" if not old else "\n" if old.endswith("\n") else "\n\n"
        before, after = old + gap, "\n"
    else:
        raise UserError(f"{path}: the markers of {name!r} are not one pair; restore or remove them")
    try:
        # Whole or not at all.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write((before + section + after).encode())
        os.chmod(file.name, path.stat().st_mode if path.exists() else 0o644)
        os.replace(file.name, path)
    except OSError as e:
        raise UserError(f"{path}: can't be written: {e}") from e


def _spread(value: dict[str, float] | None, digits: int = 2) -> str:
    if value is None:
        return "not compared"
    low, high = value["min"], value["max"]
    return f"{value['median']:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def heading(model: str, case: Case) -> str:
    """What a case is, in a line."""
    how = "one token a step" if case.one_token else "LocalLeap's defaults"
    cap = "" if case.max_steps is None else f"; uncached: the first {case.max_steps} steps"
    return (
        f"{model}, batch {case.batch}, prompt {case.prompt_length} + canvas {case.gen_length}, "
        f"block {case.block_length}, {how}{cap}"
    )


def table(case: Case, rows: list[dict[str, Any]]) -> str:
    """One case as a Markdown table, and notes below it.

    Args:
      case: what was decoded.
      rows: from `against.compare`.
    """
    out = [
        "| who | steps | tokens a step | ms a step | leapjax, same cache, is faster by "
        "| faster than plain torch, uncached, by | share of floor |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        scaled = {k: 1000 * v for k, v in row["seconds_a_step"].items()}
        gain = "" if row["name"].startswith("leapjax") else _spread(row["leapjax_gain"])
        rate = row["tokens"] / row["steps"] / case.batch
        out.append(
            f"| {row['name']} | {row['steps']} | {rate:.2f} | {_spread(scaled)} | {gain} "
            f"| {_spread(row['gain'])} | {row['floor_share']:.0%} |"
        )
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
    return "\n".join(out) + "".join(f"\n\n{note}" for note in notes)


def preamble(
    command: str, machine: Machine, versions: dict[str, str], rounds: int, quick: bool
) -> str:
    """How the tables came about.

    Args:
      command: as it was called.
      machine: as measured in the same run.
      versions: of the libraries.
      rounds: of alternating turns.
      quick: the numbers mean nothing.
    """
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"`{command}`",
        "",
        f"{machine.cores} cores, float32, {libraries}. Median of {rounds} alternating rounds "
        "(range); a step is one step of every row. In the same run the machine copied "
        f"{machine.bytes_per_s / 1e9:.1f} GB/s (array of {machine.copy_bytes / 1e9:.2f} GB, "
        f"last-level cache {machine.cache_bytes / 1e9:.2f} GB) and multiplied at "
        f"{machine.flops_per_s / 1e9:.0f} GFLOP/s ({machine.flops_by}).",
    ]
    if quick:
        lines += ["", "A quick run, to try the code: its numbers mean nothing."]
    return "\n".join(lines)
