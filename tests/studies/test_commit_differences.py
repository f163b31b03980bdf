"""Which commits differ from greedy's, on answers made by hand."""

import pytest

from leapjax.studies import ablation_plots
from leapjax.studies.commit_differences import differences, distances
from leapjax.studies.files import write

ANCHOR, NEAR, TOP = "anchor", "propagated", "top1"


def test_distances_are_to_anchors_of_the_same_pass():
    steps = [0, 1, 0, 0, 1, 2, -1]
    kinds = [ANCHOR, ANCHOR, NEAR, NEAR, NEAR, TOP, "none"]
    # Position 2 and 3 were committed with the anchor at 0; position 4 with that at 1.
    assert distances(steps, kinds) == [0, 0, 2, 3, 3, None, None]
    assert distances([0, 0, 0], [ANCHOR, NEAR, ANCHOR]) == [0, 1, 0]


def test_clean_commits_have_nothing_wrong_before_them():
    greedy = [{"output_ids": [1, 2, 3, 4, 9, 9]}]
    answer = {
        "output_ids": [1, 2, 7, 5, 9, 8],
        "commit_step": [0, 0, 1, 2, 1, 0],
        "commit_kind": [ANCHOR, NEAR, NEAR, TOP, ANCHOR, NEAR],
        "commit_confidence": [0.9, 0.8, 0.7, 0.3, 0.95, 0.8],
    }
    answer["output_ids"][5] = 9  # behind the first eos: left out, whatever it holds
    rows = {(r["kind"], r["distance"], r["clean"]): r for r in differences([answer], greedy, (9,))}

    def cell(*where):
        return rows[where]["commits"], rows[where]["differ"]

    assert cell(ANCHOR, None, False) == cell(ANCHOR, None, True) == (2, 0)
    assert cell(NEAR, None, True) == (2, 1)
    assert cell(NEAR, 1, True) == (1, 0)
    # Wrong in the first wrong pass is still its own doing ...
    assert cell(NEAR, 2, True) == (1, 1)
    # ... what a later pass commits is not.
    assert cell(TOP, None, False) == (1, 1) and (TOP, None, True) not in rows
    assert rows[NEAR, None, True]["confidence"] == 0.75


def test_without_a_difference_everything_is_clean():
    answer = {
        "output_ids": [1, 2],
        "commit_step": [0, 1],
        "commit_kind": [TOP, TOP],
        "commit_confidence": [0.5, 0.5],
    }
    rows = differences([answer], [{"output_ids": [1, 2]}], (9,))
    assert [(r["clean"], r["commits"], r["differ"]) for r in rows] == [(False, 2, 0), (True, 2, 0)]


def test_a_plot_where_nothing_differs(tmp_path):
    """Wilson's interval of no or all of n ends at 0 or 1, but for rounding on either side."""
    wilson = (149, 0.0, [1e-18, 0.03]), (19, 1.0, [0.7, 1 - 1e-16]), (9, 0.0, [0.0, 0.3])
    rows = [
        {"kind": kind, "distance": d, "clean": True, "commits": n, "share": share, "interval": ends}
        for kind, d, (n, share, ends) in zip(
            (NEAR, NEAR, ANCHOR), (1, 2, None), wilson, strict=True
        )
    ]
    report = {
        "settings": {"task": "wordproblems", "split": "heldout", "seed": 1},
        "model": {"name": "m", "hash": None},
        "n": 3,
        "points": [{"values": {"radius": 4}, "commits": [r | {"confidence": 0.8} for r in rows]}],
    }
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    write(tmp_path / "commits.png", ablation_plots.commits(report))
    assert (tmp_path / "commits.png").stat().st_size > 1000
