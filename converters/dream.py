"""Dream's tensor names, which are Qwen2's (7B Base and Instruct, Dream-Coder, DiffuCoder).

Source: the hub's `modeling_dream.py` (parameter names).
"""

from __future__ import annotations

from .table import IGNORED, Row, linear, norm

_LAYER = "model.layers.{}"

TABLE = (
    Row("model.embed_tokens.weight", "embed"),
    *norm(f"{_LAYER}.input_layernorm", "layers.attn_norm"),
    *linear(f"{_LAYER}.self_attn.q_proj", "layers.q"),
    *linear(f"{_LAYER}.self_attn.k_proj", "layers.k"),
    *linear(f"{_LAYER}.self_attn.v_proj", "layers.v"),
    *linear(f"{_LAYER}.self_attn.o_proj", "layers.o"),
    *norm(f"{_LAYER}.post_attention_layernorm", "layers.mlp_norm"),
    *linear(f"{_LAYER}.mlp.gate_proj", "layers.gate"),
    *linear(f"{_LAYER}.mlp.up_proj", "layers.up"),
    *linear(f"{_LAYER}.mlp.down_proj", "layers.down"),
    *norm("model.norm", "final_norm"),
    Row("lm_head.weight", "head"),
    # Buffers that the config determines; older files carry them.
    Row(f"{_LAYER}.self_attn.rotary_emb.inv_freq", IGNORED),
    Row("model.rotary_emb.inv_freq", IGNORED),
)
