"""Shapes to plan for without a checkpoint at hand."""

from __future__ import annotations

from pathlib import Path

from leapjax import checkpoint, models
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig

# From the hub's config.json of GSAI-ML/LLaDA-8B-Instruct and Dream-org/Dream-v0-Instruct-7B;
# the 100B shape is dense, ours, and follows no release.
PRESETS = {
    "llada-8b": ModelConfig(
        family="llada",
        vocab_size=126_464,
        d_model=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_dim=128,
        mlp_hidden_size=12_288,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        max_length=4096,
        mask_token_id=126_336,
        eos_token_id=126_081,
        pad_token_id=126_081,
    ),
    "dream-7b": ModelConfig(
        family="dream",
        vocab_size=152_064,
        d_model=3584,
        n_layers=28,
        n_heads=28,
        n_kv_heads=4,
        head_dim=128,
        mlp_hidden_size=18_944,
        rope_theta=1_000_000.0,
        norm_eps=1e-6,
        max_length=131_072,
        mask_token_id=151_666,
        eos_token_id=151_643,
        pad_token_id=151_643,
        qkv_bias=True,
        shift_logits=True,
    ),
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
    """A preset, or the shape of a checkpoint folder.

    Raises:
      UserError: neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    if (Path(name) / "config.json").is_file():
        return models.parse_config(checkpoint.read_config(Path(name)))
    raise UserError(
        f"--model {name!r}: no folder with a config.json, nor one of {', '.join(PRESETS)}"
    )
