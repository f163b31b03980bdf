"""SDAR and TraDo: Qwen3 with block-causal attention; logits belong to their own position.

Dense models only. Source: arXiv 2510.06303, github.com/JetAstra/SDAR (`configuration_sdar.py`,
`modeling_sdar.py`, `generate.py`) and, for TraDo, github.com/Gen-Verse/dLLM-RL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from leapjax.models.attention import BlockCausal
from leapjax.models.config import ModelConfig
from leapjax.models.families import qwen
from leapjax.models.keys import Keys, token_ids

MODEL_TYPES = ("sdar",)

# The hub's names are Qwen3's.
HUB, IGNORED = qwen.HUB, qwen.IGNORED

# Block of the checkpoints whose files and name give none.
_BLOCK = 4

# key -> (supported values, the original's default).
_ONLY = {
    "attention_bias": ((False, None), False),
    "hidden_act": (("silu",), "silu"),
    "use_sliding_window": ((False, None), False),
}
# Unused without a sliding window, and switches of the authors' trainer.
_HARMLESS = (
    "max_window_layers sliding_window debug ep_size fuse_cross_entropy micro_forward "
    "skip_checkpoint use_deepep"
).split()


def from_name(name: str) -> dict[str, Any]:
    """Keys that a checkpoint's name tells: `block_size` of names that end like `-b16`.

    >>> from_name("JetLM/SDAR-8B-Chat-b32"), from_name("JetLM/SDAR-8B-Chat")
    ({'block_size': 32}, {})
    """
    found = re.search(r"-b([1-9]\d{0,3})/?$", name)
    return {"block_size": int(found[1])} if found else {}


def from_generation(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that generation_config.json tells: its `eos_token_id` lists the stop ids.

    >>> from_generation({"eos_token_id": [151645, 151643]})
    {'stop_ids': [151645, 151643]}
    """
    ids = token_ids(generation.get("eos_token_id"), "generation_config.json: eos_token_id")
    return {"stop_ids": [*ids]} if ids else {}


def parse(raw: dict) -> ModelConfig:
    """Read SDAR's `config.json`.

    Args:
      raw: the parsed JSON object, with what `leapjax.checkpoint.read_config` adds to it.

    Raises:
      UserError: a needed key is missing or mistyped, or one could change what is computed.
    """
    keys = Keys(raw, "SDAR", _HARMLESS)
    keys.only(_ONLY)
    shape = qwen.shape(keys)
    keys.layer_types(shape["n_layers"])
    config = ModelConfig(
        family="sdar",
        head_dim=keys.whole("head_dim", 128),
        qk_norm=True,
        attention=BlockCausal(keys.whole("block_size", None, null=True) or _BLOCK),
        canvas="to_border",
        stop_ids=keys.ids("stop_ids"),
        **shape,
    )
    keys.done()
    return config
