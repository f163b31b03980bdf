"""LLaDA-MoE: LLaDA's decoding over an OLMoE-shaped mixture of experts, bidirectional.

Position i is predicted by the output at i. `model_type` is that of dense LLaDA: the class name in
`architectures`, or the number of experts, tells them apart.
Source: arXiv 2509.24389 and the hub's `configuration_lladamoe.py` (field names and defaults, many
of which are -1: such keys are required) and `modeling_lladamoe.py`.
"""

from collections.abc import Mapping
from typing import Any

from leapjax.models.attention import Bidirectional
from leapjax.models.config import Experts, ModelConfig, layer_runs
from leapjax.models.families import qwen
from leapjax.models.keys import Keys

MODEL_TYPES = ("llada", "lladamoe")

_LAYER = "model.layers.{}"
# The hub's names are Qwen3-MoE's; the experts that every token uses are not in `mlp`.
HUB = {
    **qwen.HUB,
    "router_bias": f"{_LAYER}.mlp.expert_bias",
    "shared_gate": f"{_LAYER}.shared_expert.gate_proj",
    "shared_up": f"{_LAYER}.shared_expert.up_proj",
    "shared_down": f"{_LAYER}.shared_expert.down_proj",
}
IGNORED = qwen.IGNORED

# Keys that the code never reads: the scores are a softmax whose chosen weights are not
# renormalised, whatever these say. The last two are the trainer's.
_HARMLESS = (
    "moe_router_score_function norm_topk_prob routed_scaling_factor router_num_group "
    "router_topk_group output_router_logits router_aux_loss_coef"
).split()


def claims(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json with one of these model types is a mixture of experts.

    >>> claims({"architectures": ["LLaDAMoEModelLM"]}), claims({"d_model": 4096})
    (True, False)
    """
    names = raw.get("architectures")
    if str(raw.get("model_type")).lower() == "lladamoe" or (
        isinstance(names, list) and "LLaDAMoEModelLM" in names
    ):
        return True
    return "d_model" not in raw and raw.get("num_experts") is not None


def parse(raw: dict) -> ModelConfig:
    """Read LLaDA-MoE's `config.json`; the originals keep the mask id with the tokenizer."""
    keys = Keys(raw, "LLaDA-MoE", _HARMLESS)
    keys.only({"hidden_act": (("silu",), "silu")})
    n_layers = qwen.layer_count(keys)
    frequency = keys.wholes("moe_layer_freq")
    if len(frequency) < n_layers:
        keys.refuse("moe_layer_freq", [*frequency], f"a number for each of {n_layers} layers")
    count = keys.whole("num_experts")
    experts = Experts(
        count=count,
        chosen=qwen.chosen_experts(keys, count),
        hidden_size=keys.whole("expert_intermediate_size"),
        shared_size=keys.whole("shared_expert_intermediate_size", null=True, least=0) or 0,
        bias="weighs" if keys.flag("moe_router_enable_expert_bias", False) else "",
    )
    kinds = [experts if number else None for number in frequency[:n_layers]]
    share = keys.rotary_share()
    shape = qwen.shape(
        keys,
        n_layers=n_layers,
        mlp_hidden_size=qwen.mlp_width(keys, "dense_intermediate_size", kinds),
        norm_eps=keys.real("rms_norm_eps", 1e-5),
        max_length=keys.whole("max_position_embeddings", 4096),
        rope_theta=keys.rope_theta(),
    )
    head_dim, biased = qwen.head_width(shape), keys.flag("attention_bias", False)
    keys.only({"head_dim": ((head_dim, None), None)})
    config = ModelConfig(
        family="llada_moe",
        head_dim=head_dim,
        qkv_bias=biased,
        o_bias=biased,
        qk_norm=keys.flag("qk_layernorm", False),
        rotary_dim=None if share == 1 else int(head_dim * share),
        clip_qkv=keys.real("clip_qkv", None, null=True),
        layer_runs=layer_runs(kinds, shape["mlp_hidden_size"], Bidirectional()),
        **shape,
    )
    keys.done()
    return config
