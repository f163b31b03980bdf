"""Dream: Qwen2-shaped, bidirectional; position i is predicted by the output at i - 1.

Covers Dream 7B Base and Instruct, Dream-Coder and DiffuCoder, which share the format.
Source: arXiv 2508.15487 and the hub's `configuration_dream.py` (field names and defaults).
"""

from leapjax.models.config import ModelConfig
from leapjax.models.families import qwen
from leapjax.models.keys import Keys

MODEL_TYPES = ("dream",)

# The hub's names are Qwen2's (source: `modeling_dream.py`).
HUB, IGNORED = qwen.HUB, qwen.IGNORED

# key -> (supported values, the original's default).
_ONLY = {
    "attention_bias": ((True,), True),  # the original ignores it and always has biases
    "hidden_act": (("silu",), "silu"),
    "mlp_bias": ((False, None), False),
    "use_mrope": ((False, None), False),
    "use_sliding_window": ((False, None), False),
}
# Unused without a sliding window.
_HARMLESS = ("max_window_layers", "sliding_window")


def parse(raw: dict) -> ModelConfig:
    """Read Dream's `config.json`."""
    keys = Keys(raw, "Dream", _HARMLESS)
    keys.only(_ONLY)
    shape = qwen.shape(keys)
    head_dim = qwen.head_width(shape)
    keys.only({"head_dim": ((head_dim, None), None)})
    keys.layer_types(shape["n_layers"])
    keys.done()
    return ModelConfig(family="dream", head_dim=head_dim, qkv_bias=True, shift_logits=True, **shape)
