"""The report of an analysis as Markdown, and the files of its output folder."""

from collections.abc import Mapping
from typing import Any

from leapjax.studies import observation_plots, plots
from leapjax.studies.observation_summary import BANDS, DISTANCES
from leapjax.studies.tables import markdown_table, with_interval

NAME = "observations"
FILES = tuple(
    f"{NAME}{end}" for end in (".json", ".md", "-delay.png", "-confidence.png", "-distance.png")
)

DEFINITIONS = """\
- **Pass, step.** Every pass of a decode is recomputed on the canvas as it was in that step: the
  final token where `commit_step` is below the step, and the mask token elsewhere. `differs` counts
  positions whose recomputed proposal in their committing step is not their final token (0, except
  for decisions closer than rounding).
- **Answer**: the canvas up to and including the first eos; the rest is padding. Positions that
  early stop filled are left out, because no policy decided them.
- **Stable from**: the first step from which every proposal of the position, up to the committing
  step, is its final token.
- **Wait**: committing step − stable from; **in the block** counts only the steps in which the
  position's block was active.
- **Consistency**: the share of (position, step) pairs, before the committing step, whose proposal
  is the final token. A position that waits counts once per step. The committing step is left out,
  because there the proposal is the final token by definition.
- **Anchor**: an undecided position of the active block whose confidence is at least the anchor
  threshold in that step, whether the policy commits it or not. Distance is the number of
  positions to the nearest anchor on either side.
- **Near** is a distance of 1 to 4, **far** a distance of 9 and more. **Equal confidence** is
  near − far within each confidence interval of width 1/20 that has both, averaged with its number
  of pairs as weight.
- **Intervals**: 95 %, percentile bootstrap over prompts, 1000 resamples.
"""


def markdown(report: Mapping[str, Any], drawn: bool = True) -> str:
    """The tables, with their definitions and figures.

    `drawn`: the figures exist.
    """
    s, runs = report["settings"], report["runs"]
    delays = ["policy", "positions", "n", "commit step", "stable from", "wait"]
    delays += ["wait in the block", "stable in the first pass, %", "waited in the block, %"]
    cells = [[*delays, "differs"]]
    for name, run in runs.items():
        for group, d in run["delay"].items():
            means = ("commit_step", "stable_from", "wait", "wait_in_block")
            told = [_told(d[key], 1) for key in means]
            told += [_told(d[key]) for key in ("at_once", "waited")]
            differs = f"{run['differs']} of {run['committed']}"
            cells.append([name, group, str(d["wait"]["n"]), *told, differs])
    consistency = ""
    for name, run in runs.items():
        by_band = [["confidence", *DISTANCES]]
        for band in BANDS:
            shares = run["determinism"]["answer"][band].values()
            by_band.append([band, *(_with_count(share) for share in shares)])
        consistency += f"{name}, answer positions of the active block, % (pairs):\n\n"
        consistency += markdown_table(by_band) + "\n"
    decay = [["policy", "confidence", "near, %", "far, %", "near − far, points"]]
    for name, run in runs.items():
        for band, d in run["decay"]["answer"].items():
            ends = [_told(d[key]) if key in d else "" for key in ("near", "far")]
            points = with_interval(d["difference"], d["interval"], "+.1f")
            decay.append([name, band, *ends, points])
    parts = [
        "# The paper's observations, measured",
        "Delayed decoding and local determinism (LocalLeap, arXiv 2510.07081). This file, its "
        f"figures and [{NAME}.json]({NAME}.json) were written by",
        f"```sh\n{report['command']}\n```",
        f"Model: {s['model']} ({s['dtype']}); prompts: {s['prompts']}; canvas "
        f"{s['gen_length']}, blocks of {s['block_length']}; anchor threshold "
        f"{s['anchor_threshold']:g}. It took {s['seconds']:.0f} s on {s['device']}.",
        f"## Definitions\n{DEFINITIONS}\n## Delayed decoding",
        markdown_table(cells, 2).rstrip(),
        f"![when proposals are final and when they are committed]({NAME}-delay.png)",
        "## Consistency by confidence and distance",
        consistency.rstrip(),
        f"![consistency by confidence]({NAME}-confidence.png)",
        "## Decay with distance",
        markdown_table(decay, 2).rstrip(),
        f"![consistency by distance]({NAME}-distance.png)",
    ]
    return "\n\n".join(part for part in parts if drawn or part[0] != "!") + "\n"


def _told(cell: Mapping[str, Any], scale: float = 100.0) -> str:
    return with_interval(cell["value"], cell["interval"], scale=scale)


def _with_count(cell: Mapping[str, Any]) -> str:
    return "–" if cell["value"] is None else f"{100 * cell['value']:.1f} ({cell['n']})"


def report_files(report: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of `FILES`, by name; figures are left out without matplotlib."""
    drawn, draw = plots.available(), observation_plots
    figures = (draw.delays, draw.by_confidence, draw.by_distance) if drawn else ()
    contents = [report, markdown(report, drawn), *(figure(report) for figure in figures)]
    return dict(zip(FILES, contents, strict=False))
