"""Options of a decode: their declarations, their checks, and the values in force."""

from leapjax.config.decode import (
    OPTIONS,
    QUANTIZATIONS,
    DecodeConfig,
    check_keys,
    per_row,
    row_config,
)

__all__ = ["OPTIONS", "QUANTIZATIONS", "DecodeConfig", "check_keys", "per_row", "row_config"]
