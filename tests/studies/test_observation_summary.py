"""Shares, waits and decay from hand-made measurements."""

import numpy as np
import pytest

from leapjax.studies import observation_summary as summary
from leapjax.studies.observations import Observations
from leapjax.studies.replay import CONFIDENCE_BINS, DISTANCE_BINS
from leapjax.studies.statistics import resampling


def observations(commit, since, answer=None, block_length=2, pairs=None, agree=None):
    commit = np.array(commit, np.int32)
    shape = (len(commit), 2, 2, CONFIDENCE_BINS, DISTANCE_BINS)
    empty = np.zeros(shape, np.int32)
    return Observations(
        block_length=block_length,
        steps=commit.max(axis=1) + 1,
        commit_step=commit,
        answer=np.ones(commit.shape, bool) if answer is None else np.array(answer),
        since=np.array(since, np.int32),
        differs=np.zeros(len(commit), np.int32),
        pairs=empty if pairs is None else pairs,
        agree=empty if agree is None else agree,
    )


def test_blocks_begin_behind_the_last_commit_of_those_before():
    commit = np.array([[0, 2, 1, 3, 5, 4], [0, 0, 1, 2, -1, -1]], np.int32)
    # Row 0's second block only began at 3; a position "committed at 1" is impossible but harmless.
    assert summary.block_starts(commit, 2).tolist() == [[0, 0, 3, 3, 4, 4], [0, 0, 1, 1, 3, 3]]


def test_waits_count_passes_in_the_active_block_alone():
    seen = observations([[1, 0, 2, 3]], [[0, 0, 0, 3]])
    out = summary.summarise(seen)["delay"]["answer"]
    # In order: waited 1; 0; final since pass 0 but its block began at 2; 0.
    assert out["wait"]["value"] == 3 / 4
    assert out["wait_in_block"]["value"] == 1 / 4
    assert out["at_once"]["value"] == 3 / 4
    assert out["waited"]["value"] == 1 / 4
    assert out["histogram"] == [3, 1]


def test_what_early_stop_filled_in_is_left_out():
    seen = observations([[0, 1, -1, -1]], [[0, 1, -1, -1]], [[True, False, False, False]])
    out = summary.summarise(seen)
    assert out["committed"] == 2
    assert [out["delay"][g]["wait"]["n"] for g in ("answer", "padding")] == [1, 1]


def test_the_curve_reaches_all_positions_and_stability_precedes_commits():
    rng = np.random.default_rng(0)
    commit = rng.permuted(np.tile(np.arange(8), (5, 1)), axis=1)
    since = rng.integers(0, commit + 1)
    c = summary.summarise(observations(commit, since, block_length=8))["curve"]
    stable, committed = ([p["value"] for p in c[k]] for k in ("stable", "committed"))
    assert stable[0] == committed[0] == 0 and stable[-1] == committed[-1] == 1
    assert all(a >= b for a, b in zip(stable, committed, strict=True))
    assert committed[c["passes"].index(0.5)] == 0.5


def test_an_interval_is_the_bootstraps_over_prompts():
    rng = np.random.default_rng(1)
    whole = rng.integers(1, 9, 40)
    part = rng.integers(0, whole + 1)
    got = summary.share(part, whole, resampling(40, np.random.default_rng(0)))
    again = []
    for _ in range(4000):
        drawn = rng.integers(0, 40, 40)
        again.append(part[drawn].sum() / whole[drawn].sum())
    assert got["value"] == part.sum() / whole.sum()
    assert got["interval"] == pytest.approx(np.percentile(again, [2.5, 97.5]), abs=0.02)
    one = summary.share(np.array([1, 0]), np.array([2, 0]), resampling(2, np.random.default_rng(0)))
    assert one == {"n": 2, "value": 0.5, "interval": None}


def test_decay_at_equal_confidence_is_not_fooled_by_surer_neighbours():
    # Near positions are surer, but at each confidence distance changes nothing.
    pairs = np.zeros((6, CONFIDENCE_BINS, DISTANCE_BINS), np.int32)
    agree = np.zeros_like(pairs)
    pairs[:, 16, 2], agree[:, 16, 2] = 80, 72
    pairs[:, 16, 12], agree[:, 16, 12] = 20, 18
    pairs[:, 4, 2], agree[:, 4, 2] = 20, 10
    pairs[:, 4, 12], agree[:, 4, 12] = 80, 40
    out = summary.decay(pairs, agree, resampling(6, np.random.default_rng(0)))
    assert out["all"]["difference"] == pytest.approx(82 / 100 - 58 / 100)
    assert out["equal confidence"]["difference"] == pytest.approx(0)
    agree[:, 4, 12] = 0
    out = summary.decay(pairs, agree, resampling(6, np.random.default_rng(0)))
    assert out["equal confidence"]["difference"] == pytest.approx(0.5 * 100 / 200)


def test_bands_and_distances_cover_every_pair_once():
    pairs = np.random.default_rng(2).integers(0, 9, (3, CONFIDENCE_BINS, DISTANCE_BINS))
    out = summary.consistency(
        pairs, pairs, summary.DISTANCES, resampling(3, np.random.default_rng(0))
    )
    bands, distances = ([n for n in x if n != "all"] for x in (summary.BANDS, summary.DISTANCES))
    cells = [out[b][d]["n"] for b in bands for d in distances]
    assert sum(cells) == out["all"]["all"]["n"] == pairs.sum()
