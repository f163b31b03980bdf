"""Shapes to plan for without a checkpoint at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leapjax import checkpoint, models
from leapjax.errors import UserError
from leapjax.models.attention import Bidirectional, BlockCausal
from leapjax.models.config import Experts, ModelConfig, layer_runs

_QWEN: dict[str, Any] = {
    "head_dim": 128,
    "rope_theta": 1_000_000.0,
    "norm_eps": 1e-6,
    "max_length": 32_768,
}


def _sdar(
    d_model: int, n_layers: int, n_heads: int, mlp_hidden_size: int, **shape: Any
) -> ModelConfig:
    """An SDAR with blocks of 4."""
    known: dict[str, Any] = dict(
        family="sdar",
        vocab_size=151_936,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        mlp_hidden_size=mlp_hidden_size,
        mask_token_id=151_669,
        eos_token_id=151_643,
        pad_token_id=151_643,
        qk_norm=True,
        attention=BlockCausal(4),
        canvas="to_border",
        stop_ids=(151_645, 151_643),
        **_QWEN,
    )
    return ModelConfig(**known | shape)


def _fast_dllm_v2(**shape: Any) -> ModelConfig:
    """A Fast-dLLM v2, made from a Qwen2.5 of this shape."""
    return ModelConfig(
        family="fast_dllm_v2",
        n_layers=28,
        mask_token_id=151_665,
        eos_token_id=151_645,
        pad_token_id=151_645,
        qkv_bias=True,
        shift_logits=True,
        attention=BlockCausal(32),
        canvas="whole_blocks",
        seeds_blocks=True,
        sub_block_length=8,
        **_QWEN | shape,
    )


def _llada2(
    d_model: int, n_layers: int, n_heads: int, mlp_hidden_size: int, expert: int
) -> ModelConfig:
    """A LLaDA2: the first layer is dense, all others have 256 experts and a shared one."""
    rule, routed = (
        BlockCausal(32),
        Experts(
            count=256,
            chosen=8,
            hidden_size=expert,
            shared_size=expert,
            score="sigmoid",
            normalize=True,
            scale=2.5,
            bias="selects",
            groups=8,
            top_groups=4,
        ),
    )
    return ModelConfig(
        family="llada2",
        vocab_size=157_184,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=4,
        head_dim=128,
        mlp_hidden_size=mlp_hidden_size,
        rope_theta=600_000.0,
        norm_eps=1e-6,
        max_length=32_768,
        mask_token_id=156_895,
        eos_token_id=156_892,
        pad_token_id=156_892,
        qk_norm=True,
        rotary_dim=64,
        attention=rule,
        layer_runs=layer_runs([None] + [routed] * (n_layers - 1), mlp_hidden_size, rule),
        canvas="overhang",
    )


# From the hub's config.json of GSAI-ML/LLaDA-8B-Instruct, Dream-org/Dream-v0-Instruct-7B, JetLM's
# SDAR, Fast_dLLM_v2_7B and inclusionAI's LLaDA-MoE-7B-A1B and LLaDA2; TraDo's shapes are SDAR's,
# that of Fast-dLLM v2 1.5B is its parent's, Qwen2.5-1.5B. The 100B shape is dense, ours, and
# follows no release.
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
    "sdar-1.7b": _sdar(2048, 28, 16, 6144),
    "sdar-4b": _sdar(2560, 36, 32, 9728),
    "sdar-8b": _sdar(4096, 36, 32, 12_288),
    "sdar-30b-a3b": _sdar(
        2048,
        48,
        32,
        768,
        n_kv_heads=4,
        layer_runs=layer_runs(
            [Experts(count=128, chosen=8, hidden_size=768, normalize=True)] * 48,
            768,
            BlockCausal(4),
        ),
    ),
    "trado-4b": _sdar(2560, 36, 32, 9728),
    "trado-8b": _sdar(4096, 36, 32, 12_288),
    "fast-dllm-v2-1.5b": _fast_dllm_v2(
        vocab_size=151_936,
        d_model=1536,
        n_heads=12,
        n_kv_heads=2,
        mlp_hidden_size=8960,
        tie_embeddings=True,
    ),
    "fast-dllm-v2-7b": _fast_dllm_v2(
        vocab_size=152_064,
        d_model=3584,
        n_heads=28,
        n_kv_heads=4,
        mlp_hidden_size=18_944,
    ),
    "llada-moe-7b-a1b": ModelConfig(
        family="llada_moe",
        vocab_size=157_184,
        d_model=2048,
        n_layers=16,
        n_heads=16,
        n_kv_heads=16,
        head_dim=128,
        mlp_hidden_size=1024,
        rope_theta=50_000.0,
        norm_eps=1e-5,
        max_length=8192,
        mask_token_id=156_895,
        eos_token_id=156_892,
        pad_token_id=156_892,
        qk_norm=True,
        layer_runs=layer_runs(
            [Experts(count=64, chosen=8, hidden_size=1024)] * 16, 1024, Bidirectional()
        ),
    ),
    "llada2-mini": _llada2(2048, 20, 16, 5120, 512),
    "llada2-flash": _llada2(4096, 32, 32, 9216, 1024),
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
