"""Decoding policies: one file each, one line in the list below.

A policy of your own needs no line here: `leapjax.register_policy` takes it.
"""

from leapjax.policies import (
    certainty_prior,
    clad,
    confidence_threshold,
    credit,
    dawn,
    entropy,
    entropy_bound,
    entropy_bounded,
    factor,
    frechet,
    hierarchy,
    influence,
    joint_threshold,
    klass,
    localleap,
    low_confidence,
    low_confidence_dynamic,
    margin,
    placebo,
    position_calibration,
    random,
    sequential,
    slowfast,
    wino,
)
from leapjax.policies.base import Parameter, Pass, Policy, commits, surest
from leapjax.policies.registry import PARAMETERS, POLICIES, ROWS, add, register_policy
from leapjax.types import ANCHOR, PROPAGATED, TOP1, Decision, Proposal

for _module in (
    localleap,
    confidence_threshold,
    low_confidence,
    margin,
    entropy,
    random,
    sequential,
    low_confidence_dynamic,
    joint_threshold,
    factor,
    frechet,
    entropy_bound,
    entropy_bounded,
    hierarchy,
    certainty_prior,
    position_calibration,
    klass,
    slowfast,
    credit,
    wino,
    dawn,
    clad,
    placebo,
    influence,
):
    add(_module.POLICY)

__all__ = [
    "ANCHOR",
    "PARAMETERS",
    "POLICIES",
    "PROPAGATED",
    "ROWS",
    "TOP1",
    "Decision",
    "Parameter",
    "Pass",
    "Policy",
    "Proposal",
    "commits",
    "register_policy",
    "surest",
]
