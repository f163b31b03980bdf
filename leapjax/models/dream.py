"""Dream: Qwen2-shaped, bidirectional; position i is predicted by the output at i - 1.

Covers Dream 7B Base and Instruct, Dream-Coder and DiffuCoder, which share the format.
Source: arXiv 2508.15487 and the hub's `configuration_dream.py` (field names only).
"""

from __future__ import annotations

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig

MODEL_TYPES = ("dream",)

_REQUIRED = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False, None),
}


def parse(raw: dict) -> ModelConfig:
    """Read Dream's `config.json`.

    Args:
      raw: the parsed JSON object.

    Raises:
      UserError: a needed key is missing, or a setting is one we don't compute.
    """
    for key, allowed in _REQUIRED.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise UserError(
                f"config.json: {key} is {raw[key]!r}; Dream is supported with "
                f"{key} = {allowed[0]!r} only"
            )
    d_model, n_heads = raw["hidden_size"], raw["num_attention_heads"]
    if d_model % n_heads:
        raise UserError(
            f"config.json: num_attention_heads {n_heads} does not divide hidden_size {d_model}"
        )
    return ModelConfig(
        family="dream",
        vocab_size=raw["vocab_size"],
        d_model=d_model,
        n_layers=raw["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=raw.get("num_key_value_heads") or n_heads,
        head_dim=d_model // n_heads,
        mlp_hidden_size=raw["intermediate_size"],
        rope_theta=float(raw.get("rope_theta", 10000.0)),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_length=raw.get("max_position_embeddings", 32768),
        mask_token_id=raw["mask_token_id"],
        eos_token_id=raw["eos_token_id"],
        pad_token_id=raw["pad_token_id"]
        if raw.get("pad_token_id") is not None
        else raw["eos_token_id"],
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=True,
        shift_logits=True,
    )
