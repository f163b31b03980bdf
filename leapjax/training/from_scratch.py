"""The `config.json` of a model that is trained from scratch, by family.

A run's `model` key overrides what is here; the tokenizer says vocabulary size and special ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leapjax.config import check_keys
from leapjax.errors import UserError

# Filled in from the tokenizer, as far as a family has the key.
_FROM_TOKENIZER: dict[str, Any] = dict.fromkeys(
    ("eos_token_id", "pad_token_id", "mask_token_id", "vocab_size")
)
# An ordinary LLaDA.
_LLADA = {
    "activation_type": "silu",
    "alibi": False,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 160,
    "embedding_dropout": 0.0,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "max_sequence_length": 512,
    "mlp_hidden_size": 448,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 5,
    "n_kv_heads": None,
    "n_layers": 6,
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 10000.0,
    "scale_logits": False,
    "use_cache": False,
    "weight_tying": False,
    "embedding_size": None,
    **_FROM_TOKENIZER,
}
_QWEN = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 160,
    "initializer_range": 0.02,
    "intermediate_size": 448,
    "max_position_embeddings": 512,
    "num_attention_heads": 5,
    "num_hidden_layers": 6,
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": False,
    "use_sliding_window": False,
    **_FROM_TOKENIZER,
}
_SDAR = _QWEN | {
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "block_size": 4,
    "head_dim": 32,
    "model_type": "sdar",
}
_FAST_DLLM_V2 = _QWEN | {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "bd_size": 32,
    "model_type": "Fast_dLLM_Qwen",
}
_LLADA_MOE = {
    "architectures": ["LLaDAMoEModelLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "dense_intermediate_size": 448,
    "expert_intermediate_size": 96,
    "hidden_act": "silu",
    "hidden_size": 160,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "model_type": "lladamoe",
    "moe_layer_freq": None,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "num_attention_heads": 5,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 6,
    "num_key_value_heads": None,
    "partial_rotary_factor": 1,
    "qk_layernorm": True,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "shared_expert_intermediate_size": None,
    "tie_word_embeddings": False,
    "use_cache": False,
    **_FROM_TOKENIZER,
}
_CONFIGS = {
    "llada": _LLADA,
    "lladamoe": _LLADA_MOE,
    "sdar": _SDAR,
    "fast_dllm_qwen": _FAST_DLLM_V2,
}
MODEL_TYPES = tuple(config["model_type"] for config in _CONFIGS.values())


def config(
    given: Mapping[str, Any], tokenizer: Mapping[str, Any], balance: float = 0.0
) -> dict[str, Any]:
    """The `config.json` of a run's new model.

    Args:
      given: the run's `model`; `model_type` chooses the family, LLaDA without it.
      tokenizer: vocabulary size and special ids, by their keys.
      balance: the run's; a mixture of experts needs one above 0.

    Raises:
      UserError: unknown family or key, or a mixture of experts without balance.

    >>> made = config({"model_type": "sdar", "block_size": 8}, {"vocab_size": 40})
    >>> made["block_size"], made["num_key_value_heads"], made["vocab_size"]
    (8, 5, 40)
    """
    kind = str(given.get("model_type", "llada")).lower()
    if kind not in _CONFIGS:
        check_keys([given["model_type"]], "model", MODEL_TYPES, "model_type")
    if kind == "lladamoe" and not balance:
        raise UserError(
            "balance is 0; a mixture of experts that is trained from scratch needs a loss that "
            "balances the load of its experts: set balance, for example to 0.01"
        )
    base = _CONFIGS[kind]
    check_keys(given, "model", base, "key")
    raw = base | {k: v for k, v in tokenizer.items() if k in base} | dict(given)
    for shared, heads in (
        ("n_kv_heads", "n_heads"),
        ("num_key_value_heads", "num_attention_heads"),
    ):
        if shared in raw:
            raw[shared] = raw[shared] or raw[heads]
    if kind == "lladamoe":
        raw["moe_layer_freq"] = raw["moe_layer_freq"] or [1] * int(raw["num_hidden_layers"])
    return raw
