"""Find the setting of a policy whose decodes cost what a reference's do (docs/evaluation.md).

A policy has one main parameter that trades accuracy for steps (`Policy.main`). `bolder` moves it
from its default by a factor, and `search` bisects the factor's logarithm.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.policies import POLICIES

MOST = 16  # settings that a search decodes at most
REACH = 12.0  # powers of two to either side of the defaults


def bolder(config: DecodeConfig, factor: float) -> DecodeConfig:
    """A policy's setting that commits more a pass, or less.

    A factor above 1 is bolder, below 1 more careful. A probability's distance from 1, and any
    other parameter itself, is multiplied by it; the passes over a block of a fixed schedule are
    divided by it.

    >>> bolder(DecodeConfig(threshold=0.9, relaxed_threshold=0.8), 2).parameters
    (('relaxed_threshold', 0.6), ('threshold', 0.8))
    """
    policy = POLICIES[config.policy]
    if not policy.tuned:
        raise UserError(f"policy {policy.name} has no parameter that trades accuracy for steps")
    if policy.tuned[0].name == "steps":
        causal = config.model is not None and config.model.block_causal
        name, each = ("steps_per_block", 1) if causal else ("steps", config.blocks)
        passes = round(config.value(name) / each / factor)
        return config.replace(**{name: each * min(max(passes, 1), config.block_length)})
    changes = {}
    for p in policy.tuned:
        value = config.value(p.name)
        probability = p.low == 0 and p.high == 1 and value < 1
        value = 1 - factor * (1 - value) if probability else factor * value
        low = -math.inf if p.low is None else p.low
        high = math.inf if p.high is None else p.high
        value = min(max(float(f"{value:.5g}"), low), high)
        changes[p.name] = round(value) if p.kind is int else value
    return config.replace(**changes)


class Found(NamedTuple):
    """The setting whose cost is the nearest to the target, and how many were decoded."""

    config: DecodeConfig
    cost: float
    tried: int


def search(
    cost: Callable[[DecodeConfig], float], start: DecodeConfig, target: float, tolerance: float
) -> Found:
    """Bisect for the setting that costs what the target says.

    `cost` gives a setting's mean steps or seconds, which fall as it gets bolder. A cost within the
    share `tolerance` of the target ends the search. The nearest setting that was tried is outside
    of it where the policy can't reach the target or where its settings are too coarse.

    >>> start = DecodeConfig(policy="confidence_threshold")
    >>> round(search(lambda c: 40 * c.value("threshold"), start, 20.0, 0.01).config.threshold, 1)
    0.5
    """
    costs: dict[DecodeConfig, float] = {}

    def missed(power: float) -> float:
        """How much dearer than the target, as a share of it."""
        config = bolder(start, 2.0**power)
        if config not in costs:
            costs[config] = cost(config)
        return costs[config] / target - 1

    dear = cheap = 0.0  # powers of two between which the target lies, once both are known
    step, off = 1.0, missed(0.0)
    upwards = off > 0
    while abs(off) > tolerance and (off > 0) == upwards and step <= REACH and len(costs) < MOST:
        dear, cheap = (cheap, step) if upwards else (-step, dear)
        off = missed(cheap if upwards else dear)
        step *= 2
    beyond = (off > 0) == upwards  # no setting within reach is on the target's other side
    while not beyond and abs(off) > tolerance and len(costs) < MOST and cheap - dear > 1e-3:
        middle = (dear + cheap) / 2
        off = missed(middle)
        dear, cheap = (middle, cheap) if off > 0 else (dear, middle)
    best = min(costs, key=lambda c: abs(costs[c] / target - 1))
    return Found(best, costs[best], len(costs))
