"""Shapes to plan for without a checkpoint at hand."""

import re
from pathlib import Path

from leapjax import checkpoint, models
from leapjax.converters.fake_models import MODELS  # pyright: ignore[reportMissingImports]
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig

# SDAR's and TraDo's, from their generation_config.json.
_STOP_IDS = [151_645, 151_643]


def _released(raw: dict) -> ModelConfig:
    """The shape of a released model, from its config.json."""
    return models.parse_config(
        raw | ({"stop_ids": _STOP_IDS} if raw["model_type"].startswith("sdar") else {})
    )


# The released models, without the end of their names, and one that follows no release: ours, dense.
PRESETS = {
    **{re.sub("-(instruct|chat)$", "", name): _released(raw) for name, (raw, _) in MODELS.items()},
    "100b": ModelConfig(
        family="llada",
        vocab_size=157_184,
        d_model=10_240,
        n_layers=80,
        n_heads=80,
        n_kv_heads=8,
        head_dim=128,
        mlp_hidden_size=32_768,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        max_length=8192,
        mask_token_id=157_000,
        eos_token_id=156_892,
        pad_token_id=156_892,
    ),
}


def find(name: str) -> ModelConfig:
    """A preset, or the shape of a checkpoint folder."""
    if name in PRESETS:
        return PRESETS[name]
    if (Path(name) / "config.json").is_file():
        return models.parse_config(checkpoint.read_config(Path(name)))
    raise UserError(
        f"--model {name!r}: no folder with a config.json, nor one of {', '.join(PRESETS)}"
    )
