"""Which commits differ from greedy's token, by kind and by distance to the nearest anchor.

A commit is *clean* if all that was committed before its pass is what greedy has there: what a
clean commit gets wrong is its own doing, while behind a difference everything may be displaced.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.evaluation.statistics import wilson

KINDS = ("top1", "anchor", "propagated")


def distances(commit_step: Sequence[int], commit_kind: Sequence[str]) -> list[int | None]:
    """Distance of each propagated position to the nearest anchor of the same pass.

    Args:
      commit_step: step that committed each position.
      commit_kind: why.

    Returns:
      One distance per position; 0 for an anchor, None for top1 and what no step committed.
      Anchors of one pass lie in the block that it is about, as the positions that they reach do.
    """
    anchors = collections.defaultdict(list)
    for i, (step, kind) in enumerate(zip(commit_step, commit_kind, strict=True)):
        if kind == "anchor":
            anchors[step].append(i)
    out: list[int | None] = []
    for i, (step, kind) in enumerate(zip(commit_step, commit_kind, strict=True)):
        if kind == "propagated":
            out.append(min(abs(i - a) for a in anchors[step]))
        else:
            out.append(0 if kind == "anchor" else None)
    return out


def differences(
    these: Sequence[Mapping[str, Any]], greedy: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Shares of commits that differ from greedy's token at the same position.

    Args:
      these: answers with details.
      greedy: greedy's, to the same problems in the same order.

    Returns:
      Rows of `kind`, `distance` (of propagated only, else None), `clean` (only clean commits, or
      all), `commits`, `differ`, `share`, `interval` (95 % Wilson, as if commits were
      independent) and `confidence` (mean, when committed). Positions behind greedy's first
      eos are left out.
    """
    seen: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0, 0.0])
    for answer, other in zip(these, greedy, strict=True):
        steps, kinds = answer["commit_step"], answer["commit_kind"]
        last = other["eos_position"]
        wrong = [a != b for a, b in zip(answer["output_ids"], other["output_ids"], strict=True)]
        wrong_steps = [s for s, w in zip(steps, wrong, strict=True) if w and s >= 0]
        first_wrong = min(wrong_steps, default=None)
        for i, distance in enumerate(distances(steps, kinds)):
            if kinds[i] not in KINDS or steps[i] < 0 or i > last:
                continue
            clean = first_wrong is None or steps[i] <= first_wrong
            places = [None, distance] if kinds[i] == "propagated" else [None]
            for place in places:
                for which in (False, True) if clean else (False,):
                    cell = seen[kinds[i], place, which]
                    cell[0] += 1
                    cell[1] += wrong[i]
                    cell[2] += answer["commit_confidence"][i]
    rows = []
    for kind in KINDS:
        keys = [k for k in seen if k[0] == kind]
        for k in sorted(keys, key=lambda k: (k[2], -1 if k[1] is None else k[1])):
            commits, differ, confidence = seen[k]
            rows.append(
                {
                    "kind": kind,
                    "distance": k[1],
                    "clean": k[2],
                    "commits": int(commits),
                    "differ": int(differ),
                    "share": differ / commits,
                    "interval": list(wilson(int(differ), int(commits))),
                    "confidence": confidence / commits,
                }
            )
    return rows


def with_eos(answers: Sequence[Mapping[str, Any]], eos_id: int) -> list[dict[str, Any]]:
    """Answers with `eos_position`, the first eos of the canvas, its last position without one.

    Args:
      answers: with details.
      eos_id: the model's.
    """
    out = []
    for answer in answers:
        ids = answer["output_ids"]
        out.append(dict(answer, eos_position=ids.index(eos_id) if eos_id in ids else len(ids) - 1))
    return out
