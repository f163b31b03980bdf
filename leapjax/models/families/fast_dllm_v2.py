"""Fast-dLLM v2: Qwen2.5 with block-causal attention; the output at i - 1 predicts position i.

A block's first token is the argmax of the pass that stores the block before it; the rest is decided
sub-block by sub-block.
Source: arXiv 2509.26328 and the hub's `configuration.py` and `modeling.py`.
"""

from leapjax.models.attention import BlockCausal
from leapjax.models.config import ModelConfig
from leapjax.models.families import qwen
from leapjax.models.keys import Keys

MODEL_TYPES = ("fast_dllm_qwen",)

# The hub's names are Qwen2's.
HUB, IGNORED = qwen.HUB, qwen.IGNORED

_SUB_BLOCK = 8  # default argument `small_block_size` of the original's `generate`

# key -> (supported values, the original's default).
_ONLY = {
    "hidden_act": (("silu",), "silu"),
    "use_sliding_window": ((False, None), False),
}
# Complementary masks are the trainer's (spelled so), windows are off, and the biases of queries,
# keys and values are there whatever `attention_bias` says.
_HARMLESS = ("attention_bias", "conplemenrary_mask", "max_window_layers", "sliding_window")


def parse(raw: dict) -> ModelConfig:
    """Read Fast-dLLM v2's `config.json`, with what `leapjax.checkpoint.read_config` adds to it."""
    keys = Keys(raw, "Fast-dLLM v2", _HARMLESS)
    keys.only(_ONLY)
    shape = qwen.shape(keys)
    keys.layer_types(shape["n_layers"])
    block = keys.whole("bd_size", 32)
    config = ModelConfig(
        family="fast_dllm_v2",
        head_dim=keys.whole("head_dim", None, null=True) or qwen.head_width(shape),
        qkv_bias=True,
        shift_logits=True,
        attention=BlockCausal(block),
        canvas="whole_blocks",
        seeds_blocks=True,
        sub_block_length=_SUB_BLOCK if block % _SUB_BLOCK == 0 else block,
        **shape,
    )
    keys.done()
    return config
