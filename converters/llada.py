"""LLaDA's tensor names (8B Base, Instruct and 1.5, and what its config allows).

Source: the hub's `modeling_llada.py` (parameter names). `ff_proj` is the gated half of the
MLP, the one that goes through the activation.
"""

from __future__ import annotations

from .table import IGNORED, Row, linear, norm

_BLOCK = "model.transformer.blocks.{}"

TABLE = (
    Row("model.transformer.wte.weight", "embed"),
    *norm(f"{_BLOCK}.attn_norm", "layers.attn_norm"),
    *linear(f"{_BLOCK}.q_proj", "layers.q"),
    *linear(f"{_BLOCK}.k_proj", "layers.k"),
    *linear(f"{_BLOCK}.v_proj", "layers.v"),
    *linear(f"{_BLOCK}.attn_out", "layers.o"),
    *norm(f"{_BLOCK}.ff_norm", "layers.mlp_norm"),
    *linear(f"{_BLOCK}.ff_proj", "layers.gate"),
    *linear(f"{_BLOCK}.up_proj", "layers.up"),
    *linear(f"{_BLOCK}.ff_out", "layers.down"),
    *norm("model.transformer.ln_f", "final_norm"),
    Row("model.transformer.ff_out.weight", "head"),
    Row("model.transformer.ff_out.bias", "head_bias"),
    # A buffer that the config determines.
    Row(f"{_BLOCK}.rotary_emb.inv_freq", IGNORED),
)
