"""Settings of equal cost: the search, and what every policy turns."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.policies import POLICIES
from leapjax.studies.equal_cost import MOST, bolder, search
from leapjax.testing import tiny_config

BASE = DecodeConfig(gen_length=64, block_length=16).for_model(tiny_config())
TUNED = [name for name, policy in POLICIES.items() if policy.tuned]


@pytest.mark.parametrize("name", TUNED)
def test_every_policy_turns_its_main_parameter(name):
    start = BASE.replace(policy=name)
    main = POLICIES[name].tuned[0]
    values = [bolder(start, factor).value(main.name) for factor in (0.25, 1, 3)]
    assert values[1] == start.value(main.name)
    falls = main.name == "steps" or (main.low, main.high) == (0, 1)
    assert values == sorted(values, reverse=falls) and values[0] != values[2]
    for factor in (2.0**-12, 2.0**12):
        bolder(start, factor)  # stays within the parameters' ranges


def test_a_bounded_parameter_moves_along(monkeypatch):
    made = bolder(BASE, 2)
    assert (made.threshold, made.relaxed_threshold, made.radius) == (0.8, 0.5, None)
    made = bolder(BASE.replace(policy="dawn"), 2)
    assert (made.tau_low, made.tau_induce, made.tau_edge) == (0.5, 0.4, None)
    bare = dataclasses.replace(POLICIES["localleap"], parameters=())
    monkeypatch.setitem(POLICIES, "localleap", bare)
    with pytest.raises(UserError, match="policy localleap has no parameter"):
        bolder(BASE, 2)


@given(st.floats(1, 60), st.sampled_from(["confidence_threshold", "localleap", "factor"]))
def test_the_search_reaches_every_cost_in_between(target, policy):
    def cost(config):
        """Between 1 and 64 steps, and smooth."""
        doubt = config.factor if policy == "factor" else 1 - config.threshold
        return 1 + 63 / (1 + 20 * (0.1 if doubt is None else doubt))

    start = BASE.replace(policy=policy, **({"factor": 0.1} if policy == "factor" else {}))
    start = start if policy == "factor" else start.replace(threshold=0.9)
    found = search(cost, start, target, 0.02)
    assert found.cost == cost(found.config) and found.tried <= MOST
    if target > 4.2:  # a threshold of 0 is the boldest
        assert abs(found.cost / target - 1) <= 0.02


def test_a_cost_out_of_reach_is_given_up_early():
    seen = []
    start = BASE.replace(policy="confidence_threshold")
    found = search(lambda c: seen.append(c) or 10.0, start, 3.0, 0.05)
    assert found.cost == 10 and found.tried == len(seen) <= 5


def test_a_schedule_takes_the_nearest_number_of_passes():
    start = BASE.replace(policy="greedy")
    found = search(lambda c: float(c.value("steps")), start, 11.0, 0.02)
    assert found.config.value("steps") == 12  # 4 blocks: 8, 12, 16, ...
    found = search(lambda c: float(c.value("steps")), start, 64.0, 0.02)
    assert found.config.value("steps") == 64 and found.tried == 1
