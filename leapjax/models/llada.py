"""LLaDA: Llama-shaped, bidirectional; logits belong to their own position.

Source: arXiv 2502.09992 and the hub's `configuration_llada.py` (field names only).
"""

from __future__ import annotations

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig

MODEL_TYPES = ("llada",)

# Settings of the original code that change the computation and that no released
# checkpoint uses; anything else than these values is refused rather than ignored.
_REQUIRED = {
    "activation_type": ("silu",),
    "alibi": (False, None),
    "attention_layer_norm": (False, None),
    "block_type": ("llama",),
    "clip_qkv": (None,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "rope": (True,),
    "rope_scaling": (None,),
}


def parse(raw: dict) -> ModelConfig:
    """Read LLaDA's `config.json`.

    Args:
      raw: the parsed JSON object.

    Raises:
      UserError: a needed key is missing, or a setting is one we don't compute.
    """
    for key, allowed in _REQUIRED.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise UserError(
                f"config.json: {key} is {raw[key]!r}; LLaDA is supported with "
                f"{key} = {allowed[0]!r} only"
            )
    d_model, n_heads = raw["d_model"], raw["n_heads"]
    n_kv_heads = raw.get("n_kv_heads")
    if n_kv_heads is None:
        n_kv_heads = 1 if raw.get("multi_query_attention") else n_heads
    if d_model % n_heads:
        raise UserError(
            f"config.json: n_heads {n_heads} (config key n_heads) does not divide d_model {d_model}"
        )
    bias = bool(raw.get("include_bias", False))
    norm_bias = raw.get("bias_for_layer_norm")
    tied = bool(raw.get("weight_tying", True))
    mlp = raw.get("mlp_hidden_size")
    return ModelConfig(
        family="llada",
        vocab_size=raw.get("embedding_size") or raw["vocab_size"],
        d_model=d_model,
        n_layers=raw["n_layers"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=d_model // n_heads,
        mlp_hidden_size=mlp if mlp is not None else int(raw.get("mlp_ratio", 4) * d_model),
        rope_theta=float(raw.get("rope_theta", 10000.0)),
        norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        max_length=raw.get("max_sequence_length", 1024),
        mask_token_id=raw["mask_token_id"],
        eos_token_id=raw["eos_token_id"],
        pad_token_id=raw["pad_token_id"]
        if raw.get("pad_token_id") is not None
        else raw["eos_token_id"],
        tie_embeddings=tied,
        qkv_bias=bias or bool(raw.get("include_qkv_bias", False)),
        linear_bias=bias,
        head_bias=bias and not tied,
        norm_bias=bias if norm_bias is None else bool(norm_bias),
        embed_scale=d_model**0.5 if raw.get("input_emb_norm") else 1.0,
        logit_scale=d_model**-0.5 if raw.get("scale_logits") else 1.0,
        shift_logits=False,
    )
