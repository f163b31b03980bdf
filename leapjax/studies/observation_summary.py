"""The measurements of an analysis as shares with intervals, JSON-ready.

Intervals are percentile bootstraps over prompts (the positions of a prompt are not
independent): prompts are drawn again with replacement, and the share is computed anew.

Shapes: n prompts, C canvas, K cells, R resamples.
"""

from typing import Any

import numpy as np

from leapjax.studies.observations import Observations
from leapjax.studies.replay import CONFIDENCE_BINS, DISTANCE_BINS, FARTHEST, NO_ANCHOR
from leapjax.studies.statistics import resampling

# Bands of confidence: [low, high) in twentieths, the last one closed.
BANDS = {
    "all": (0, CONFIDENCE_BINS),
    "below 0.25": (0, 5),
    "0.25 to 0.5": (5, 10),
    "0.5 to 0.75": (10, 15),
    "0.75 to 0.9": (15, 18),
    "0.9 and more": (18, 20),
}
DISTANCES = {
    "all": (0, DISTANCE_BINS),
    "itself an anchor": (0, 1),
    "1 to 2": (1, 3),
    "3 to 4": (3, 5),
    "5 to 8": (5, 9),
    "9 to 16": (9, 17),
    "17 and more": (17, FARTHEST + 1),
    "no anchor": (NO_ANCHOR, NO_ANCHOR + 1),
}
NEAR, FAR = (1, 5), (9, FARTHEST + 1)  # what the decay compares: inside radius 4, beyond twice 4
CURVE = 40  # points of the curve over a decode's passes


def share(part: np.ndarray, whole: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """A ratio of sums over prompts, with its interval.

    `part` and `whole` are counts or sums by prompt. `value` and the 95 % `interval` are None where
    there is nothing, or only one prompt, to tell from.
    """
    total = int(whole.sum())
    if not total:
        return {"n": 0, "value": None, "interval": None}
    value = float(part.sum() / total)
    if np.count_nonzero(whole) < 2:
        return {"n": total, "value": value, "interval": None}
    parts, wholes = weights @ part, weights @ whole
    kept = wholes > 0
    ends = np.percentile(parts[kept] / wholes[kept], [2.5, 97.5])
    return {"n": total, "value": value, "interval": ends.tolist()}


def summarise(seen: Observations) -> dict[str, Any]:
    """Every number of the report for one policy."""
    weights = resampling(len(seen.steps), np.random.default_rng(0))
    groups = {"answer": seen.answer, "padding": ~seen.answer}
    tables = {  # (n, confidence, distance); the active block alone, and the canvas behind it
        "answer": (seen.pairs[:, 1, 1], seen.agree[:, 1, 1]),
        "padding": (seen.pairs[:, 1, 0], seen.agree[:, 1, 0]),
        "answer, later blocks": (seen.pairs[:, 0, 1], seen.agree[:, 0, 1]),
    }
    return {
        "prompts": len(seen.steps),
        "steps": float(seen.steps.mean()),
        "committed": int((seen.commit_step >= 0).sum()),
        "differs": int(seen.differs.sum()),
        "delay": {name: delay(seen, where, weights) for name, where in groups.items()},
        "curve": curve(seen, seen.answer, weights),
        "determinism": {name: consistency(*t, DISTANCES, weights) for name, t in tables.items()},
        "distance": {name: by_distance(*t, weights) for name, t in tables.items()},
        "decay": {name: decay(*t, weights) for name, t in tables.items()},
    }


def block_starts(commit_step: np.ndarray, block_length: int) -> np.ndarray:
    """(n, C) int: the step after the last commit of the blocks before each position's own.

    >>> block_starts(np.array([[0, 2, 3, 3]]), block_length=2).tolist()
    [[0, 0, 3, 3]]
    """
    n, c = commit_step.shape
    last = commit_step.reshape(n, c // block_length, block_length).max(axis=2)
    before = np.maximum.accumulate(last, axis=1)[:, :-1]
    starts = np.concatenate([np.zeros((n, 1), before.dtype), before + 1], axis=1)
    return np.repeat(starts, block_length, axis=1)


def delay(seen: Observations, where: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """How long final proposals wait for their commit.

    Means over positions: `commit_step`, `stable_from` (`since`), `wait` (their difference),
    `wait_in_block` (the part after the position's block became active); shares: `at_once` (stable
    from the first pass on), `waited` (at least one pass while its block was active); `histogram`:
    positions by `wait_in_block`, 0, 1, …. Positions that no policy decided are left out.
    """
    used = where & (seen.commit_step >= 0) & (seen.since >= 0)
    count = used.sum(axis=1)
    waits = seen.commit_step - seen.since
    starts = block_starts(seen.commit_step, seen.block_length)
    in_block = seen.commit_step - np.maximum(seen.since, starts)

    def mean(values):
        return share((values * used).sum(axis=1), count, weights)

    return {
        "commit_step": mean(seen.commit_step),
        "stable_from": mean(seen.since),
        "wait": mean(waits),
        "wait_in_block": mean(in_block),
        "at_once": mean(seen.since == 0),
        "waited": mean(in_block > 0),
        "histogram": np.bincount(in_block[used], minlength=seen.block_length).tolist(),
    }


def curve(seen: Observations, where: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Shares of positions that are stable, and committed, after a share of a row's passes."""
    used = where & (seen.commit_step >= 0) & (seen.since >= 0)
    count, steps = used.sum(axis=1), seen.steps[:, None]
    at = [k / CURVE for k in range(CURVE + 1)]
    out: dict[str, Any] = {"passes": at, "stable": [], "committed": []}
    for x in at:
        for name, step in (("stable", seen.since), ("committed", seen.commit_step)):
            reached = used & (step + 1 <= x * steps + 1e-9)
            out[name].append(share(reached.sum(axis=1), count, weights))
    return out


def consistency(pairs, agree, spans, weights) -> dict[str, dict[str, Any]]:
    """The share that agrees, by band of confidence and span of distances."""

    def cell(levels, span) -> dict[str, Any]:
        part, whole = (t[:, slice(*levels), slice(*span)].sum(axis=(1, 2)) for t in (agree, pairs))
        return share(part, whole, weights)

    return {
        band: {name: cell(levels, span) for name, span in spans.items()}
        for band, levels in BANDS.items()
    }


def by_distance(pairs, agree, weights) -> dict[str, list[dict[str, Any]]]:
    """Consistency at each distance from 1 on, over all confidences and by band."""
    spans = {d: (d, d + 1) for d in range(1, FARTHEST + 1)}
    found = consistency(pairs, agree, spans, weights)
    return {band: list(cells.values()) for band, cells in found.items()}


def decay(pairs, agree, weights) -> dict[str, Any]:
    """Near minus far: consistency at distances 1 to 4 less that at 9 and more.

    By band of confidence, `all`, and `equal confidence`: the difference in each bin of a twentieth
    that has both, weighed by its pairs, so that nothing but distance differs (up to the bin).
    """
    out = consistency(pairs, agree, {"near": NEAR, "far": FAR}, weights)
    for band, levels in BANDS.items():
        out[band] |= _difference(pairs, agree, weights, levels, False)
    out["equal confidence"] = _difference(pairs, agree, weights, BANDS["all"], True)
    return out


def _difference(pairs, agree, weights, levels, by_bin: bool) -> dict[str, Any]:
    """Near minus far with its interval, pooled or bin by bin of confidence."""

    def sums(table, span):  # (n, K)
        part = table[:, slice(*levels), slice(*span)].sum(axis=2)
        return part if by_bin else part.sum(axis=1, keepdims=True)

    four = [sums(t, span) for span in (NEAR, FAR) for t in (agree, pairs)]

    def value(near_agree, near, far_agree, far):
        both = (near > 0) & (far > 0)
        gap = near_agree / np.maximum(near, 1) - far_agree / np.maximum(far, 1)
        weight = np.where(both, near + far, 0)
        total = weight.sum(axis=-1)
        return np.where(total > 0, (gap * weight).sum(axis=-1) / np.maximum(total, 1), np.nan)

    point = float(value(*(x.sum(axis=0) for x in four)))
    again = value(*(weights @ x for x in four))
    if np.isnan(point) or len(pairs) < 2:
        return {"difference": None, "interval": None}
    return {"difference": point, "interval": np.nanpercentile(again, [2.5, 97.5]).tolist()}
