"""The hub's names of weights in Qwen2's and Qwen3's layout, which several families share."""

from __future__ import annotations

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
    "final_norm": "model.norm",
    "head": "lm_head",
}
