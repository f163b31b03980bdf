"""Qwen2's and Qwen3's layout and keys, which several families share."""

from __future__ import annotations

from typing import Any

from leapjax.errors import UserError
from leapjax.models.keys import Keys

_LAYER = "model.layers.{}"
HUB = {
    "embed": "model.embed_tokens",
    "attn_norm": f"{_LAYER}.input_layernorm",
    "q": f"{_LAYER}.self_attn.q_proj",
    "k": f"{_LAYER}.self_attn.k_proj",
    "v": f"{_LAYER}.self_attn.v_proj",
    "o": f"{_LAYER}.self_attn.o_proj",
    "q_norm": f"{_LAYER}.self_attn.q_norm",
    "k_norm": f"{_LAYER}.self_attn.k_norm",
    "mlp_norm": f"{_LAYER}.post_attention_layernorm",
    "gate": f"{_LAYER}.mlp.gate_proj",
    "up": f"{_LAYER}.mlp.up_proj",
    "down": f"{_LAYER}.mlp.down_proj",
    # Of Qwen3-MoE.
    "router": f"{_LAYER}.mlp.gate",
    "experts_gate": f"{_LAYER}.mlp.experts.{{}}.gate_proj",
    "experts_up": f"{_LAYER}.mlp.experts.{{}}.up_proj",
    "experts_down": f"{_LAYER}.mlp.experts.{{}}.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
# Buffers that the config determines; older files carry them.
IGNORED = ("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")


def shape(keys: Keys) -> dict[str, Any]:
    """The fields of `ModelConfig` that every Qwen-shaped config.json gives, without `head_dim`.

    Args:
      keys: the config's.

    Returns:
      Fields by name.

    Raises:
      UserError: a key is missing or mistyped.
    """
    n_heads = keys.whole("num_attention_heads")
    eos = keys.whole("eos_token_id", least=0)
    pad = keys.whole("pad_token_id", None, null=True, least=0)
    return {
        "vocab_size": keys.whole("vocab_size"),
        "d_model": keys.whole("hidden_size"),
        "n_layers": keys.whole("num_hidden_layers"),
        "n_heads": n_heads,
        "n_kv_heads": keys.whole("num_key_value_heads", None, null=True) or n_heads,
        "mlp_hidden_size": keys.whole("intermediate_size"),
        "rope_theta": keys.rope_theta(10000.0),
        "norm_eps": keys.real("rms_norm_eps", 1e-6),
        "max_length": keys.whole("max_position_embeddings", 32768),
        "mask_token_id": keys.whole("mask_token_id", least=0),
        "eos_token_id": eos,
        "pad_token_id": eos if pad is None else pad,
        "tie_embeddings": keys.flag("tie_word_embeddings", False),
    }


def head_width(shape: dict[str, Any]) -> int:
    """The width of a head where config.json has no `head_dim`.

    Args:
      shape: fields of `ModelConfig`, from `shape`.

    Raises:
      UserError: the heads don't divide the residual stream.
    """
    width, rest = divmod(shape["d_model"], shape["n_heads"])
    if rest:
        raise UserError(
            f"config.json: num_attention_heads {shape['n_heads']} does not divide hidden_size "
            f"{shape['d_model']}"
        )
    return width
