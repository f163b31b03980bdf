"""Model families: one file each, one line in `FAMILIES`."""

from __future__ import annotations

from leapjax.errors import UserError
from leapjax.models import dream, llada
from leapjax.models.config import ModelConfig, param_shapes

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
    kind = str(raw.get("model_type", "")).lower()
    for family in FAMILIES.values():
        if kind in family.MODEL_TYPES:
            try:
                return family.parse(raw)
            except KeyError as e:
                raise UserError(f"config.json: key {e.args[0]!r} is missing") from e
            except (TypeError, ValueError) as e:
                raise UserError(f"config.json: a value has the wrong type ({e})") from e
    known = ", ".join(t for f in FAMILIES.values() for t in f.MODEL_TYPES)
    raise UserError(
        f"config.json: model_type {raw.get('model_type')!r} is not a known family (known: {known})"
    )


__all__ = ["FAMILIES", "ModelConfig", "param_shapes", "parse_config"]
