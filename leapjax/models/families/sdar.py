"""SDAR and TraDo: Qwen3 with block-causal attention; logits belong to their own position.

SDAR-MoE is Qwen3-MoE in the same way. Source: arXiv 2510.06303, github.com/JetAstra/SDAR
(`configuration_sdar.py`, `modeling_sdar.py`, `generate.py`), github.com/yjyddq/DARE (its
mixture of experts) and, for TraDo, github.com/Gen-Verse/dLLM-RL.
"""

import re
from collections.abc import Mapping
from typing import Any

from leapjax.models.attention import BlockCausal
from leapjax.models.config import Experts, ModelConfig, layer_runs
from leapjax.models.families import qwen
from leapjax.models.keys import Keys, token_ids

MODEL_TYPES = ("sdar", "sdar_moe")

# The hub's names are Qwen3's and Qwen3-MoE's.
HUB, IGNORED = qwen.HUB, qwen.IGNORED

# Block of the checkpoints whose files and name give none.
_BLOCK = 4

# key -> (supported values, the original's default).
_ONLY = {
    "hidden_act": (("silu",), "silu"),
    "use_sliding_window": ((False, None), False),
}
# Unused without a sliding window, and switches of the authors' trainer.
_HARMLESS = (
    "max_window_layers sliding_window debug ep_size fuse_cross_entropy micro_forward "
    "skip_checkpoint use_deepep"
).split()
_HARMLESS_MOE = [*_HARMLESS, "output_router_logits", "router_aux_loss_coef"]


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
    """Read SDAR's `config.json`, with what `leapjax.checkpoint.read_config` adds to it."""
    mixture = str(raw["model_type"]).lower() == "sdar_moe"
    keys = Keys(raw, "SDAR-MoE" if mixture else "SDAR", _HARMLESS_MOE if mixture else _HARMLESS)
    keys.only(_ONLY)
    n_layers = qwen.layer_count(keys)
    kinds = _kinds(keys, n_layers) if mixture else [None]
    width = qwen.mlp_width(keys, "intermediate_size", kinds)
    # The classes' defaults differ: of these two, a mixture's config.json must say what they are.
    own = {"n_kv_heads": keys.whole("num_key_value_heads")} if mixture else {}
    shape = qwen.shape(keys, n_layers=n_layers, mlp_hidden_size=width, **own)
    keys.layer_types(n_layers)
    attention = BlockCausal(keys.whole("block_size", None, null=True) or _BLOCK)
    biased = keys.flag("attention_bias", False)
    config = ModelConfig(
        family="sdar",
        head_dim=keys.whole("head_dim", *(() if mixture else (128,))),
        qkv_bias=biased,
        o_bias=biased,
        qk_norm=True,
        attention=attention,
        layer_runs=layer_runs(kinds, width, attention) if mixture else (),
        canvas="to_border",
        stop_ids=keys.ids("stop_ids"),
        **shape,
    )
    keys.done()
    return config


def _kinds(keys: Keys, n_layers: int) -> list[Experts | None]:
    """For each layer, its experts, or None for an MLP."""
    count = keys.whole("num_experts", 128)
    experts = Experts(
        count=count,
        chosen=qwen.chosen_experts(keys, count, 8),
        hidden_size=keys.whole("moe_intermediate_size", 768),
        normalize=keys.flag("norm_topk_prob", False),
    )
    dense, step = {*keys.wholes("mlp_only_layers", [])}, keys.whole("decoder_sparse_step", 1)
    return [None if layer in dense or (layer + 1) % step else experts for layer in range(n_layers)]
