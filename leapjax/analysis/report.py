"""The report as Markdown, and the files of an output folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapjax.analysis import figures
from leapjax.analysis.summary import BANDS, DISTANCES
from leapjax.errors import UserError
from leapjax.evaluation.plot import available

NAME = "observations"
FILES = tuple(
    f"{NAME}{end}" for end in (".json", ".md", "-delay.png", "-confidence.png", "-distance.png")
)

DEFINITIONS = """\
- **Pass, step.** Every pass of a decode is recomputed on the canvas of that time: the final token
  where `commit_step` is below the step, the mask token elsewhere. `differs` counts positions
  whose proposal in their committing step is not their token (0, except for decisions closer than
  rounding).
- **Answer**: the canvas up to and including the first eos; the rest is padding. Positions that
  early stop filled are left out, because no policy decided them.
- **Stable from**: the first step from which every proposal of the position, up to the committing
  step, is its final token.
- **Wait**: committing step − stable from; **in the block**: only the steps in which the
  position's block was active.
- **Consistency**: the share of (position, step) pairs, before the committing step, whose proposal
  is the final token. A position that waits counts once per step. The committing step is left out,
  because the two agree there by definition.
- **Anchor**: an undecided position of the active block whose confidence is at least the anchor
  threshold in that step, whether the policy commits it or not. Distance is the number of
  positions to the nearest anchor on either side.
- **Near** is a distance of 1 to 4, **far** 9 and more. **At equal confidence**: near − far within
  each twentieth of confidence that has both, weighted by its pairs.
- **Intervals**: 95 %, percentile bootstrap over prompts, 1000 resamples.
"""


def markdown(report: Mapping[str, Any]) -> str:
    """The tables, with their definitions and figures.

    Args:
      report: as `leapjax analyze` writes it.
    """
    s = report["settings"]
    lines = [
        "# The paper's observations, measured",
        "",
        "Delayed decoding and local determinism (LocalLeap, arXiv 2510.07081). This file, its "
        f"figures and [{NAME}.json]({NAME}.json) were written by",
        "",
        f"```sh\n{report['command']}\n```",
        "",
        f"Model: {s['model']} ({s['dtype']}); prompts: {s['prompts']}; canvas "
        f"{s['gen_length']}, blocks of {s['block_length']}; anchor threshold "
        f"{s['anchor_threshold']:g}. It took {s['seconds']:.0f} s on {s['device']}.",
        "",
        "## Definitions",
        DEFINITIONS,
        "## Delayed decoding",
        "",
        "| policy | positions | n | commit step | stable from | wait | wait in the block | "
        "stable in the first pass, % | waited in the block, % | differs |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, run in report["runs"].items():
        for group, d in run["delay"].items():
            cells = [_number(d[k]) for k in ("commit_step", "stable_from", "wait", "wait_in_block")]
            cells += [_share(d[k]) for k in ("at_once", "waited")]
            lines.append(
                f"| {name} | {group} | {d['wait']['n']} | {' | '.join(cells)} | "
                f"{run['differs']} of {run['committed']} |"
            )
    lines += ["", f"![when proposals are final and when they are committed]({NAME}-delay.png)", ""]
    lines += ["## Consistency by confidence and distance", ""]
    for name, run in report["runs"].items():
        lines += [f"{name}, answer positions of the active block, % (pairs):", ""]
        lines += ["| confidence | all | " + " | ".join(DISTANCES) + " |"]
        lines += ["|---|" + "--:|" * (1 + len(DISTANCES))]
        for band in ("all", *BANDS):
            row = run["determinism"]["answer"][band].values()
            lines.append(f"| {band} | " + " | ".join(_brief(c) for c in row) + " |")
        lines.append("")
    lines += [
        f"![consistency by confidence]({NAME}-confidence.png)",
        "",
        "## Decay with distance",
        "",
    ]
    lines += [
        "| policy | confidence | near, % | far, % | near − far, points |",
        "|---|---|--:|--:|--:|",
    ]
    for name, run in report["runs"].items():
        for band, d in run["decay"]["answer"].items():
            near, far = (_share(d[k]) if k in d else "" for k in ("near", "far"))
            lines.append(f"| {name} | {band} | {near} | {far} | {_points(d)} |")
    lines += ["", f"![consistency by distance]({NAME}-distance.png)", ""]
    return "\n".join(lines)


def _number(cell) -> str:
    return _with(cell, 1, 1)


def _share(cell) -> str:
    return _with(cell, 100, 1)


def _with(cell, scale, digits) -> str:
    if cell["value"] is None:
        return "–"
    text = f"{scale * cell['value']:.{digits}f}"
    if cell["interval"]:
        low, high = (scale * x for x in cell["interval"])
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    return text


def _brief(cell) -> str:
    return "–" if cell["value"] is None else f"{100 * cell['value']:.1f} ({cell['n']})"


def _points(d) -> str:
    if d["difference"] is None:
        return "–"
    low, high = (100 * x for x in d["interval"])
    return f"{100 * d['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that can't take the report, before any work is done.

    Args:
      folder: where the files shall be.
      overwrite: those there may be replaced.

    Raises:
      UserError: in the way, or it can't be made.
    """
    there = [n for n in FILES if (folder / n).exists()]
    if there and not overwrite:
        raise UserError(f"--output {folder}: {there[0]} exists; add --overwrite to replace it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output {folder}: can't be made ({e.strerror or e})") from e


def write(report: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Write tables and figures; all are made before the first appears.

    Args:
      report: as `leapjax analyze` makes it.
      folder: checked by `check_folder`.

    Returns:
      Names of the files written; figures are left out without matplotlib.

    Raises:
      UserError: the folder can't be written.
    """
    text, drawn = markdown(report), ()
    if available():
        drawn = (figures.delays(report), figures.determinism(report), figures.distance(report))
    else:
        text = "".join(line for line in text.splitlines(True) if not line.startswith("!["))
    contents = ((json.dumps(report, indent=1) + "\n").encode(), text.encode(), *drawn)
    names = FILES[: len(contents)]
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".analyze-") as made:
            for name, content in zip(names, contents, strict=True):
                (Path(made) / name).write_bytes(content)
            for name in names:
                os.replace(Path(made) / name, (folder / name).resolve())
    except OSError as e:
        raise UserError(f"{e.filename or folder}: can't be written ({e.strerror or e})") from e
    return names
