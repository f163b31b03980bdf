"""Decoding policies: one file each, one line in the registry."""

from __future__ import annotations

from leapjax.policies import (
    certainty_prior,
    confidence_threshold,
    credit,
    entropy,
    entropy_bound,
    factor,
    hierarchy,
    klass,
    localleap,
    low_confidence,
    margin,
    placebo,
    position_calibration,
    random,
    slowfast,
    wino,
)
from leapjax.policies.base import Pass, Policy

POLICIES: dict[str, Policy] = {
    module.POLICY.name: module.POLICY
    for module in (
        localleap,
        confidence_threshold,
        low_confidence,
        margin,
        entropy,
        random,
        factor,
        entropy_bound,
        hierarchy,
        certainty_prior,
        position_calibration,
        klass,
        slowfast,
        credit,
        wino,
        placebo,
    )
}

__all__ = ["POLICIES", "Pass", "Policy"]
