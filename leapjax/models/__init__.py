"""Model families: one file each, one line in `FAMILIES`."""

from __future__ import annotations

from leapjax.errors import UserError
from leapjax.models import dream, llada
from leapjax.models.config import ModelConfig, param_shapes
from leapjax.models.keys import shown

FAMILIES = {"llada": llada, "dream": dream}


def parse_config(raw: dict) -> ModelConfig:
    """Recognise the family of a hub `config.json` and read its shape.

    Args:
      raw: the parsed JSON object.

    Raises:
      UserError: unknown family, missing or mistyped key, unsupported setting.
    """
    if not isinstance(raw, dict):
        raise UserError("config.json: expected a JSON object")
    known = {t: family for family in FAMILIES.values() for t in family.MODEL_TYPES}
    if "model_type" not in raw:
        raise UserError(f"config.json: key 'model_type' is missing (known: {', '.join(known)})")
    family = known.get(str(raw["model_type"]).lower())
    if family is None:
        raise UserError(
            f"config.json: model_type {shown(raw['model_type'])} is not a known family (known: "
            f"{', '.join(known)})"
        )
    return family.parse(raw)


__all__ = ["FAMILIES", "ModelConfig", "param_shapes", "parse_config"]
