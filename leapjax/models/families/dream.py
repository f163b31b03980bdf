"""Dream: Qwen2-shaped, bidirectional; position i is predicted by the output at i - 1.

Covers Dream 7B Base and Instruct, Dream-Coder and DiffuCoder, which share the format.
Source: arXiv 2508.15487 and the hub's `configuration_dream.py` (field names and defaults).
"""

from __future__ import annotations

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.models.families.qwen import HUB as QWEN
from leapjax.models.keys import Keys

MODEL_TYPES = ("dream",)

# Our name -> the hub's, which is Qwen2's (source: `modeling_dream.py`).
HUB = QWEN
# Buffers that the config determines; older files carry them.
IGNORED = ("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")

# key -> (supported values, what the original takes where the key is absent).
_ONLY = {
    "attention_bias": ((True,), True),  # the original has biases whatever it says
    "hidden_act": (("silu",), "silu"),
    "mlp_bias": ((False, None), False),
    "use_mrope": ((False, None), False),
    "use_sliding_window": ((False, None), False),
}
# Read by nothing while there is no sliding window.
_HARMLESS = ("max_window_layers", "sliding_window")


def parse(raw: dict) -> ModelConfig:
    """Read Dream's `config.json`.

    Args:
      raw: the parsed JSON object.

    Raises:
      UserError: a needed key is missing or mistyped, or one could change what is computed.
    """
    keys = Keys(raw, "Dream", _HARMLESS)
    keys.only(_ONLY)
    d_model, n_heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    n_layers = keys.whole("num_hidden_layers")
    if d_model % n_heads:
        raise UserError(
            f"config.json: num_attention_heads {n_heads} does not divide hidden_size {d_model}"
        )
    keys.only({"head_dim": ((d_model // n_heads, None), None)})
    keys.full_attention("layer_types", n_layers)
    eos, pad = (
        keys.whole("eos_token_id", least=0),
        keys.whole("pad_token_id", None, null=True, least=0),
    )
    config = ModelConfig(
        family="dream",
        vocab_size=keys.whole("vocab_size"),
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=keys.whole("num_key_value_heads", None, null=True) or n_heads,
        head_dim=d_model // n_heads,
        mlp_hidden_size=keys.whole("intermediate_size"),
        rope_theta=keys.rope_theta(10000.0),
        norm_eps=keys.real("rms_norm_eps", 1e-6),
        max_length=keys.whole("max_position_embeddings", 32768),
        mask_token_id=keys.whole("mask_token_id", least=0),
        eos_token_id=eos,
        pad_token_id=eos if pad is None else pad,
        tie_embeddings=keys.flag("tie_word_embeddings", False),
        qkv_bias=True,
        shift_logits=True,
    )
    keys.done()
    return config
