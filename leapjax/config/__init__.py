"""Options of a decode: what there are, what they may be, and which are in force."""

from __future__ import annotations

from leapjax.config.decode import (
    OPTIONS,
    QUANTIZATIONS,
    DecodeConfig,
    check_keys,
    per_row,
    row_config,
)

__all__ = ["OPTIONS", "QUANTIZATIONS", "DecodeConfig", "check_keys", "per_row", "row_config"]
