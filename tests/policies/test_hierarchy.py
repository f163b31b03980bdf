"""Hierarchical decoding (dInfer): run by run of masks."""

import itertools

import numpy as np

from tests.policies.batches import check_rule, open_positions, surest


def rule(row):
    """Each run's largest above the low threshold, everything above the threshold, the surest."""
    confidence, out = row["confidence"], {}
    left = open_positions(row)
    for _, run in itertools.groupby(enumerate(left), key=lambda x: x[1] - x[0]):
        run = [i for _, i in run]
        largest = max(confidence[i] for i in run)
        if largest > np.float32(row["own"]["low_threshold"]):
            out |= {i: "propagated" for i in run if confidence[i] == largest}
    out |= {i: "anchor" for i in left if confidence[i] > row["threshold"]}
    if left:
        out.setdefault(surest(row), "top1")
    return out


def test_commit_is_the_published_rule():
    check_rule("hierarchy", rule)
