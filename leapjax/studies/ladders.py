"""Ladders: the settings that are tried, from safe to fast, in an order fixed beforehand."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapjax.config import DecodeConfig, check_keys, per_row
from leapjax.errors import UserError
from leapjax.policies.names import policy_of, suggestion

SETTINGS = "settings"


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Settings of one policy, from safe to fast."""

    name: str  # for reports
    policy: str
    settings: tuple[Mapping[str, Any], ...]  # each one's options with one value per row

    def configs(self, base: DecodeConfig) -> list[DecodeConfig]:
        """The settings as decode options; `base` has what the ladder leaves open."""
        shared = base.replace(policy=self.policy)
        out = []
        for number, setting in enumerate(self.settings, 1):
            try:
                out.append(shared.replace(**setting))
            except UserError as e:
                raise UserError(f"{self.name}: setting {number}: {e}") from e
        return out


# Each setting lowers a threshold of the one before; the eighth is the paper's. A choice made
# before any calibration was run, not tuned on problems.
_THRESHOLDS = (
    *((0.999, 0.995), (0.995, 0.98), (0.99, 0.95), (0.98, 0.92), (0.95, 0.9), (0.9, 0.85)),
    *((0.9, 0.8), (0.9, 0.75), (0.85, 0.7), (0.8, 0.65), (0.7, 0.6)),
)
_SETTINGS = ({"threshold": t, "relaxed_threshold": r, "radius": 4} for t, r in _THRESHOLDS)
DEFAULT = Ladder("default", "localleap", tuple(_SETTINGS))


def read(path: str | Path) -> Ladder:
    """Read a user's ladder, YAML of `policy` (default localleap) and a list of `settings`."""
    from leapjax.options import load_yaml

    value = load_yaml(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected policy and settings; docs/calibration.md has an example")
    check_keys(value, str(path), ("policy", SETTINGS), "key")
    policy, settings = value.get("policy", DEFAULT.policy), value.get(SETTINGS)
    if not isinstance(policy, str):
        raise UserError(f"{path}: policy is {policy!r}; expected a word")
    if (found := policy_of(policy)) is None:
        raise UserError(f"{path}: unknown policy {policy!r}; {suggestion(policy)}")
    policy, tokens = found
    if tokens:
        raise UserError(f"{path}: {value['policy']} has one setting only; write policy: {policy}")
    if not isinstance(settings, list) or not settings:
        raise UserError(f"{path}: settings should be a list of at least one setting, safe to fast")
    allowed = [name for name in per_row() if name not in ("temperature", "top_p", "top_k", "seed")]
    for number, setting in enumerate(settings, 1):
        if not isinstance(setting, dict):
            raise UserError(f"{path}: setting {number} should be options and values")
        check_keys(setting, f"{path}: setting {number}", allowed)
    return Ladder(str(path), policy, tuple(settings))
