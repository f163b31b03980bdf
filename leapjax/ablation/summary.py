"""The numbers of a setting: accuracy, agreement with greedy, steps; and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.evaluation.report import summarise
from leapjax.evaluation.statistics import wilson

DEFINITIONS = {
    "accuracy": "share of problems whose final number is right; 95 % Wilson interval",
    "difference": "accuracy minus greedy's on the same canvas, mean of the per-problem "
    "differences; 95 % normal interval, mean ± 1.96 s / sqrt(n)",
    "agreement": "share of answers whose text is greedy's; 95 % Wilson interval",
    "steps": "mean steps over the whole canvas; share: of greedy's mean on the same problems",
    "eos_steps": "mean steps up to and including the first eos",
    "tokens_per_step": "tokens before the first eos, per step over the whole canvas",
    "on_front": "no other point of the grid is at least as accurate in fewer steps, or more "
    "accurate in as many",
}
_KEPT = (
    "n",
    "accuracy",
    "accuracy_interval",
    "difference",
    "difference_interval",
    "steps",
    "steps_share",
    "eos_steps",
    "tokens_per_step",
)


def measure(
    these: Sequence[Mapping[str, Any]], greedy: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The numbers of one setting.

    Args:
      these: its answers.
      greedy: greedy's, to the same problems in the same order.

    Returns:
      Numbers by the names in `DEFINITIONS`.
    """
    # Nothing here is timed: rows of many settings run together.
    untimed = [{**a, "seconds": 0.0} for a in these]
    numbers = summarise(untimed, greedy)
    same = sum(a["text"] == b["text"] for a, b in zip(these, greedy, strict=True))
    return {
        **{name: numbers[name] for name in _KEPT},
        "agreement": same / len(these),
        "agreement_interval": list(wilson(same, len(these))),
    }


def front(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the points that no other beats in both accuracy and steps, fewest steps first.

    Args:
      points: with `accuracy` and `steps`; of equal points the first stays.
    """
    order = sorted(
        range(len(points)), key=lambda i: (points[i]["steps"], -points[i]["accuracy"], i)
    )
    out, best = [], -1.0
    for i in order:
        if points[i]["accuracy"] > best:
            out.append(i)
            best = points[i]["accuracy"]
    return out
