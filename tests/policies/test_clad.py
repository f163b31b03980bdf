"""CLAD: its rule in plain Python, and what the authors' code commits."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from leapjax import DecodeConfig
from leapjax.policies import POLICIES, Pass
from leapjax.testing import tiny_config
from leapjax.types import COMMIT, Attention, Proposal
from tests.policies.batches import (
    FIRST,
    LEFT,
    WIDTH,
    attention_of,
    check_rule,
    open_positions,
    reaches,
    surest,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def rule(row, span=WIDTH):
    """The steps of the published rule, one cluster at a time."""
    confidence, masks = row["confidence"], open_positions(row)
    if not masks:
        return {}
    sure = {i for i in masks if reaches(confidence[i], row["threshold"])}
    candidates = sorted(sure | {surest(row)})
    a = attention_of(row)[LEFT:, LEFT:]
    look = np.maximum(a, a.T)
    runs = itertools.groupby(enumerate(candidates), key=lambda x: x[1] - x[0])
    clusters = [[i for _, i in run] for _, run in runs]

    def one_way(a, b):
        return max(np.mean([look[i, j] for j in b]) for i in a)

    def score(n, m):
        return max(one_way(clusters[n], clusters[m]), one_way(clusters[m], clusters[n]))

    count = len(clusters)
    others = {n: [m for m in range(count) if m != n] for n in range(count)}
    partner = {n: max(ms, key=lambda m, n=n: score(n, m)) for n, ms in others.items() if ms}
    kept = []
    for n, cluster in enumerate(clusters):
        m = partner.get(n)
        conflict = m is not None and partner[m] == n
        conflict = conflict and (count > 2 or score(n, m) >= 1.2 / span)
        if not conflict or (len(cluster), -n) > (len(clusters[m]), -m):
            kept += cluster
    return {i: "anchor" if i in sure else "top1" for i in kept}


@pytest.mark.parametrize("span", ["block", "sequence"])
def test_commit_is_the_published_rule(span):
    length = {"block": WIDTH, "sequence": LEFT + WIDTH - FIRST}[span]
    check_rule("clad", lambda row: rule(row, length), span=span)


@pytest.mark.parametrize("span", ["block", "sequence"])
def test_commits_are_the_authors(span):
    with np.load(GOLDEN / "clad.npz") as z:
        mine = z["sequence"] == (span == "sequence")
        z = {name: z[name][mine] for name in z.files}
    rows, side = z["open"].shape
    info = Pass(
        quota=None,
        parameters={"threshold": z["threshold"].astype(np.float32)},
        columns=np.broadcast_to(np.arange(side, dtype=np.int32), (rows, side)),
        block=side - z["span"],
        first=np.zeros(rows, np.int32),
        end=z["span"],
    )
    attention = Attention(z["attention"].astype(np.float32))
    proposal = Proposal(token=None, confidence=z["confidence"], attention=attention)

    def commit(proposal, masked, info):
        numbers = info.parameters | {"span": span}
        return POLICIES["clad"].commit(proposal, masked, info._replace(parameters=numbers))

    decision = jax.jit(commit)(proposal, z["open"], info)
    np.testing.assert_array_equal(decision.action == COMMIT, z["commit"])


def test_what_two_clusters_are_measured_by_is_as_in_each_familys_original():
    config = DecodeConfig(policy="clad")
    assert config.value("span") == config.for_model(tiny_config("llada")).value("span") == "block"
    dream = config.for_model(tiny_config("dream"))
    assert dream.value("span") == "sequence" == dream.to_dict()["span"]
    assert dream.replace(span="block").value("span") == "block"
