"""Options of a decode: what there are, what they may be, and which are in force."""

from __future__ import annotations

from leapjax.config.decode import (
    FIELDS,
    OWN,
    PER_ROW,
    POLICY_OPTIONS,
    QUANTIZATIONS,
    SCHEDULES,
    DecodeConfig,
    check_keys,
    row_config,
)

__all__ = [
    "FIELDS",
    "OWN",
    "PER_ROW",
    "POLICY_OPTIONS",
    "QUANTIZATIONS",
    "SCHEDULES",
    "DecodeConfig",
    "check_keys",
    "row_config",
]
