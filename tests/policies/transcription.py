"""The policies' published rules in plain Python: one row, one position at a time.

Each takes a row (dict of lists and numbers) and gives {position: kind}.
"""

from tests.policies.batches import reaches


def surest(row):
    """The most confident masked position; the leftmost of equals."""
    left = [i for i, m in enumerate(row["masked"]) if m]
    return max(left, key=lambda i: row["confidence"][i], default=None)


def confidence_threshold(row):
    out = {}
    for i, masked in enumerate(row["masked"]):
        if masked and reaches(row["confidence"][i], row["threshold"]):
            out[i] = "anchor"
    best = surest(row)
    if best is not None:
        out.setdefault(best, "top1")
    return out


def localleap(row):
    out = {}
    width = len(row["masked"])
    for i in range(width):
        if row["masked"][i] and reaches(row["confidence"][i], row["threshold"]):
            out[i] = "anchor"
    own = row["own"]
    for a in sorted(out):
        for i in range(width):
            distance = abs(i - a)
            if distance > own["radius_left" if i < a else "radius_right"] or not row["masked"][i]:
                continue
            if row["confidence"][i] >= row["relaxed_threshold"] + own["decay"] * (distance - 1):
                out.setdefault(i, "propagated")
    best = surest(row)
    if best is not None:
        out.setdefault(best, "top1")
    return out


def _scheduled(row, score):
    """One by one: the best that is left, the leftmost of equals."""
    left = [i for i, m in enumerate(row["masked"]) if m]
    out = {}
    while left and len(out) < row["quota"]:
        best = max(left, key=lambda i: score[i])
        left.remove(best)
        out[best] = "schedule"
    return out


def low_confidence(row):
    return _scheduled(row, row["confidence"])


def margin(row):
    return _scheduled(row, row["margin"])


def entropy(row):
    return _scheduled(row, [-x for x in row["entropy"]])


def random(row):
    return _scheduled(row, row["uniform"])


def sequential(row):
    left = [i for i, m in enumerate(row["masked"]) if m]
    return dict.fromkeys(left[: row["quota"]], "schedule")


def low_confidence_dynamic(row):
    """SDAR's and LLaDA2.0's."""
    left = [i for i, m in enumerate(row["masked"]) if m]
    sure = [i for i in left if row["confidence"][i] > row["threshold"]]
    if len(sure) >= row["quota"]:
        return dict.fromkeys(sure, "anchor")
    return low_confidence(row)


def joint_threshold(row):
    """LLaDA2.1's."""
    left = [i for i, m in enumerate(row["masked"]) if m]
    sure = [i for i in left if row["confidence"][i] > row["threshold"]]
    least = row["own"]["num_to_transfer"]
    if len(sure) < least:
        best = _scheduled(row | {"quota": least}, row["confidence"])
        return {i: "anchor" if i in sure else "top1" for i in best}
    return dict.fromkeys(sure, "anchor")


RULES = {
    "localleap": localleap,
    "confidence_threshold": confidence_threshold,
    "low_confidence": low_confidence,
    "margin": margin,
    "entropy": entropy,
    "random": random,
    "sequential": sequential,
    "low_confidence_dynamic": low_confidence_dynamic,
    "joint_threshold": joint_threshold,
}
