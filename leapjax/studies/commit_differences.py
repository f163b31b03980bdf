"""Which commits differ from greedy's token, by kind and by distance to the nearest anchor.

A commit is *clean* if everything committed before its pass is what greedy has there. Behind a
difference the rest of an answer may merely be displaced, so only clean commits are a policy's own
errors.
"""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from leapjax.studies.statistics import wilson

KINDS = ("top1", "anchor", "propagated")


def distances(commit_step: Sequence[int], commit_kind: Sequence[str]) -> list[int | None]:
    """Distance of each propagated position to the nearest anchor of the same pass.

    0 for an anchor, None for top1 and what no step committed. Anchors of a pass lie in its active
    block, like the positions that they reach.

    >>> distances([0, 0, 1], ["anchor", "propagated", "top1"])
    [0, 1, None]
    """
    pairs = list(zip(commit_step, commit_kind, strict=True))
    anchors = collections.defaultdict(list)
    for i, (step, kind) in enumerate(pairs):
        if kind == "anchor":
            anchors[step].append(i)
    found = {"anchor": lambda i, step: 0}
    found["propagated"] = lambda i, step: min(abs(i - a) for a in anchors[step])
    return [found[k](i, s) if k in found else None for i, (s, k) in enumerate(pairs)]


def differences(
    these: Sequence[Mapping[str, Any]], greedy: Sequence[Mapping[str, Any]], ends: Collection[int]
) -> list[dict[str, Any]]:
    """Shares of commits that differ from greedy's token at the same position.

    Answers have details and are to the same problems in the same order; positions behind greedy's
    first end are left out. `clean` rows count clean commits, the others all; `distance` is None
    where it does not matter; `interval` is Wilson's 95 %, as if commits were independent.
    """
    seen: dict[tuple, list[Any]] = collections.defaultdict(lambda: [0, 0, 0.0])
    for answer, other in zip(these, greedy, strict=True):
        steps, kinds, theirs = answer["commit_step"], answer["commit_kind"], other["output_ids"]
        last = next((n for n, i in enumerate(theirs) if i in ends), len(theirs) - 1)
        wrong = [a != b for a, b in zip(answer["output_ids"], theirs, strict=True)]
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
    order = sorted(seen, key=lambda k: (KINDS.index(k[0]), k[2], -1 if k[1] is None else k[1]))
    return [
        {
            "kind": kind,
            "distance": distance,
            "clean": clean,
            "commits": n,
            "differ": differ,
            "share": differ / n,
            "interval": list(wilson(differ, n)),
            "confidence": confidence / n,
        }
        for kind, distance, clean in order
        for n, differ, confidence in [seen[kind, distance, clean]]
    ]
