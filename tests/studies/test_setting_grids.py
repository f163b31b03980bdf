"""The grid's language, and which points it leaves out."""

import pytest

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.studies.setting_grids import build, parse_axis
from leapjax.testing import tiny_config

BASE = DecodeConfig(gen_length=16, block_length=8).for_model(tiny_config())


def grid(*axes, base=BASE):
    return build([parse_axis(a) for a in axes], base)


@pytest.mark.parametrize(
    "text, name, values",
    [
        ("threshold=0.7:0.95:6", "threshold", (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
        ("threshold=0.9:0.5:3", "threshold", (0.9, 0.7, 0.5)),
        ("radius=0,1,2", "radius", (0, 1, 2)),
        ("radius=0:16:5", "radius", (0, 4, 8, 12, 16)),
        ("radius=4:9:1", "radius", (4,)),
        ("block-length= 8, 16", "block_length", (8, 16)),
        ("policy=localleap,factor", "policy", ("localleap", "factor")),
        ("early_stop=true,false", "early_stop", ("block", "off")),
        ("decay=0,0,0.5", "decay", (0.0, 0.5)),
    ],
)
def test_axes(text, name, values):
    axis = parse_axis(text)
    assert (axis.name, axis.values) == (name, values)
    assert [type(v) for v in axis.values] == [type(v) for v in values]


@pytest.mark.parametrize(
    "text, message",
    [
        ("threshold", "expected NAME=a,b,c"),
        ("threshold=", "expected NAME=a,b,c"),
        ("treshold=1", "did you mean 'threshold'"),
        ("seed=1,2", "unknown axis 'seed'"),
        ("threshold=0.7:0.9", "expected NAME=a,b,c"),
        ("threshold=a:0.9:3", "count is whole"),
        ("threshold=0:1:0", "1 to 10000 values"),
        ("threshold=nan:1:3", "finite"),
        ("radius=0:5:3", "whole numbers, not 2.5"),
        ("radius=1.5", "expected a whole number"),
        ("threshold=high", "expected a number"),
        ("early_stop=yes", "--grid: early_stop is 'yes'; choose one of off, block, settled"),
        ("logits_eos_inf=yes", "expected true or false"),
        ("cache=none:dual:2", "expected NAME=a,b,c"),
    ],
)
def test_bad_axes(text, message):
    with pytest.raises(UserError, match=message):
        parse_axis(text)


def test_relaxed_above_threshold_is_left_out_and_counted():
    made = grid("threshold=0.5,0.7,0.9", "relaxed_threshold=0.5,0.7,0.9", "radius=1,2")
    assert len(made.points) == 12 and made.left_out == 6 and made.merged == 0
    pairs = {(p.values["threshold"], p.values["relaxed_threshold"]) for p in made.points}
    assert pairs == {(t, r) for t in (0.5, 0.7, 0.9) for r in (0.5, 0.7, 0.9) if r <= t}
    # A default counts as well: 0.75 is LocalLeap's relaxed threshold.
    made = grid("threshold=0.7,0.75")
    assert [p.config.threshold for p in made.points] == [0.75] and made.left_out == 1
    with pytest.raises(UserError, match="no point is left"):
        grid("threshold=0.5")


def test_a_policy_takes_the_axes_it_reads():
    made = grid("policy=localleap,confidence_threshold", "threshold=0.8,0.9", "radius=1,2,3")
    by_policy = [p.config.policy for p in made.points]
    assert by_policy.count("localleap") == 6 and by_policy.count("confidence_threshold") == 2
    assert made.merged == 4 and made.left_out == 0
    assert all(p.config.gen_length == 16 for p in made.points)


@pytest.mark.parametrize(
    "axes, message",
    [
        (("radius=1", "radius=2"), "radius is given twice"),
        (("policy=confidence_threshold", "radius=1"), "does not read radius"),
        (("policy=gredy", "radius=1"), "unknown policy"),
        (("block_length=5",), "does not divide"),
        (("threshold=0.9,2",), "threshold is 2"),
        (("threshold=0.8:0.9:101", "relaxed_threshold=0:0.7:101"), "10201 points are more"),
    ],
)
def test_bad_grids(axes, message):
    with pytest.raises(UserError, match=message):
        grid(*axes)
