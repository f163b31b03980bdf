"""SDAR and TraDo: Qwen3 with block-causal attention; logits belong to their own position.

Dense models only. Source: arXiv 2510.06303, github.com/JetAstra/SDAR (`configuration_sdar.py`,
`modeling_sdar.py`, `generate.py`) and, for TraDo, github.com/Gen-Verse/dLLM-RL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.models.attention import BlockCausal
from leapjax.models.config import ModelConfig
from leapjax.models.families import qwen
from leapjax.models.keys import Keys

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


def complete(
    raw: Mapping[str, Any], names: Sequence[str], generation: Mapping[str, Any]
) -> dict[str, Any]:
    """Keys that config.json lacks, from what lies around it.

    Args:
      raw: the parsed config.json.
      names: names of the checkpoint: a block other than 4 may be the ending of one, `-b16`.
      generation: the parsed generation_config.json, whose `eos_token_id` lists the stop ids.

    Returns:
      `block_size` and `stop_ids`, as far as they are told and config.json lacks them.
    """
    endings = (re.search(r"-b([1-9]\d{0,3})/?$", name) for name in names)
    block = next((int(found[1]) for found in endings if found), None)
    told = {"block_size": block, "stop_ids": generation.get("eos_token_id")}
    return {k: v for k, v in told.items() if v is not None and raw.get(k) is None}


def parse(raw: dict) -> ModelConfig:
    """Read SDAR's `config.json`.

    Args:
      raw: the parsed JSON object, completed by `complete`. The originals keep the mask id in the
        tokenizer's files only.

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
