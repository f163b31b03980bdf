"""Decoding policies: one file each, one line in the registry."""

from __future__ import annotations

from leapjax.policies import (
    confidence_threshold,
    entropy,
    localleap,
    low_confidence,
    margin,
    random,
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
    )
}

__all__ = ["POLICIES", "Pass", "Policy"]
