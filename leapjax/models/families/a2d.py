"""A2D: Qwen3 or Qwen2.5 made bidirectional; logits belong to their own position.

Covers the mdlm checkpoints. The bd3lm ones decode by blocks that see only what lies before them,
count these from the prompt's end, and look the same in every file: only their names tell.
Source: github.com/ZHZisZZ/dllm (`dllm/pipelines/a2d`); keys and defaults are those of
transformers' `configuration_qwen3.py` and `configuration_qwen2.py`, 4.57.
"""

from leapjax.models.config import ModelConfig
from leapjax.models.families import qwen
from leapjax.models.keys import Keys

MODEL_TYPES = ("a2d-qwen3", "a2d-qwen2")

# The hub's names are the parents'.
HUB, IGNORED = qwen.HUB, qwen.IGNORED

# Qwen3's template then writes an empty thought, as the originals' loader has it.
TEMPLATE_OPTIONS = {"enable_thinking": False}

# Windows change nothing: every layer is given a mask that hides pads alone.
_HARMLESS = ("max_window_layers", "sliding_window", "use_sliding_window")
_LAYERS = ("full_attention", "sliding_attention")


def parse(raw: dict) -> ModelConfig:
    """Read A2D's `config.json`; the originals keep the mask id with the tokenizer."""
    qwen3 = str(raw["model_type"]).lower() == "a2d-qwen3"
    # Qwen2 has biases on queries, keys and values whatever this key says.
    keys = Keys(raw, "A2D", _HARMLESS if qwen3 else (*_HARMLESS, "attention_bias"))
    keys.only({"hidden_act": (("silu",), "silu")})
    shape = qwen.shape(keys)
    if qwen3:
        keys.only({"attention_bias": ((False, None), False)})
        head_dim = keys.whole("head_dim", 128)
    else:
        head_dim = keys.whole("head_dim", None, null=True)
    if head_dim is None:
        head_dim = qwen.head_width(shape)
    keys.layer_types(shape["n_layers"], _LAYERS)
    keys.done()
    return ModelConfig(family="a2d", head_dim=head_dim, qk_norm=qwen3, qkv_bias=not qwen3, **shape)
