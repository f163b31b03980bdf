"""LLaDA2.0, LLaDA2.0-CAP and LLaDA2.1: Ling-shaped mixtures of experts with block-causal attention.

Position i is predicted by the output at i. Decoding goes by blocks on absolute positions; the last
one is decoded whole, and the answer is cut to its length.
Source: arXiv 2512.15745, 2602.08676 and the hub's `configuration_llada2_moe.py` (field names and
defaults) and `modeling_llada2_moe.py`.
"""

from leapjax.errors import UserError
from leapjax.models.attention import BlockCausal
from leapjax.models.config import Experts, ModelConfig, layer_runs
from leapjax.models.families import qwen
from leapjax.models.keys import SPECIAL_IDS, Keys, shown

MODEL_TYPES = ("llada2_moe", "llada2_moe_veomni")

_LAYER = "model.layers.{}"
_MLP, _FUSED = f"{_LAYER}.mlp", f"{_LAYER}.attention.query_key_value"
HUB = {
    "embed": "model.word_embeddings",
    "attn_norm": f"{_LAYER}.input_layernorm",
    "q": _FUSED,  # one tensor: all queries, then keys, then values
    "k": _FUSED,
    "v": _FUSED,
    "q_norm": f"{_LAYER}.attention.query_layernorm",
    "k_norm": f"{_LAYER}.attention.key_layernorm",
    "o": f"{_LAYER}.attention.dense",
    "mlp_norm": f"{_LAYER}.post_attention_layernorm",
    "gate": f"{_MLP}.gate_proj",
    "up": f"{_MLP}.up_proj",
    "down": f"{_MLP}.down_proj",
    "router": f"{_MLP}.gate",
    "router_bias": f"{_MLP}.gate.expert_bias",
    "experts_gate": f"{_MLP}.experts.{{}}.gate_proj",
    "experts_up": f"{_MLP}.experts.{{}}.up_proj",
    "experts_down": f"{_MLP}.experts.{{}}.down_proj",
    "experts_gate_merged": f"{_MLP}.experts.gate_proj",
    "experts_up_merged": f"{_MLP}.experts.up_proj",
    "experts_down_merged": f"{_MLP}.experts.down_proj",
    "shared_gate": f"{_MLP}.shared_experts.gate_proj",
    "shared_up": f"{_MLP}.shared_experts.up_proj",
    "shared_down": f"{_MLP}.shared_experts.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
IGNORED = ("model.rotary_emb.inv_freq",)

_BLOCK = 32  # of the training, and of every engine
_MASK = 156895  # the released models', if neither config.json nor a tokenizer tells

# Keys that the code never reads: scores are sigmoids whatever these say, with a bias, and the
# chosen ones are renormalised; RoPE goes by `partial_rotary_factor`; the mask knows no window.
_HARMLESS = (
    "embedding_dropout max_window_layers moe_router_enable_expert_bias norm_head norm_softmax "
    "norm_topk_prob output_dropout output_router_logits rotary_dim router_dtype score_function "
    "sliding_window use_rmsnorm use_sliding_window using_split_qkv_in_self_attention"
).split()


def parse(raw: dict) -> ModelConfig:
    """Read LLaDA2's `config.json`, with what `leapjax.checkpoint.read_config` adds to it."""
    raw = {k: v for k, v in raw.items() if v is not None or k not in SPECIAL_IDS}
    keys = Keys(raw, "LLaDA2", _HARMLESS)
    if (capacity := raw.get("expert_capacity")) is not None:
        raise UserError(
            f"config.json: expert_capacity is {shown(capacity)}, the block routing of LLaDA2.2, "
            "which leapjax does not support"
        )
    keys.only({"hidden_act": (("silu",), "silu"), "expert_capacity": ((None,), None)})
    n_layers, vocab_size = qwen.layer_count(keys), keys.whole("vocab_size")
    dense, experts = keys.whole("first_k_dense_replace", 0, least=0), _experts(keys)
    kinds = [None if layer < dense else experts for layer in range(n_layers)]
    kv_heads = keys.whole("num_key_value_heads", 0, least=0)
    # The released files have neither of these ids.
    mask = (_MASK,) if _MASK < vocab_size else ()
    eos = (raw["pad_token_id"],) if "pad_token_id" in raw else ()
    share = keys.rotary_share(0.5)
    shape = qwen.shape(
        keys,
        vocab_size=vocab_size,
        n_layers=n_layers,
        n_kv_heads=kv_heads or keys.whole("num_attention_heads"),
        mlp_hidden_size=qwen.mlp_width(keys, "intermediate_size", kinds),
        norm_eps=keys.real("rms_norm_eps", 1e-5),
        max_length=keys.whole("max_position_embeddings", 16384),
        mask_token_id=keys.whole("mask_token_id", *mask, least=0),
        eos_token_id=keys.whole("eos_token_id", *eos, least=0),
        rope_theta=keys.rope_theta(10000.0),
    )
    head_dim = keys.whole("head_dim", None, null=True) or qwen.head_width(shape)
    config = ModelConfig(
        family="llada2",
        head_dim=head_dim,
        qkv_bias=keys.flag("use_qkv_bias", False),
        o_bias=keys.flag("use_bias", True),
        qk_norm=keys.flag("use_qk_norm", True),
        rotary_dim=None if share == 1 else int(head_dim * share),
        attention=BlockCausal(_BLOCK),
        layer_runs=layer_runs(kinds, shape["mlp_hidden_size"], BlockCausal(_BLOCK)),
        canvas="overhang",
        **shape,
    )
    keys.done()
    return config


def _experts(keys: Keys) -> Experts:
    """The experts of the layers that have some."""
    count, groups = keys.whole("num_experts", 16), keys.whole("n_group", 8)
    if count % groups or count < 2 * groups:
        keys.refuse("n_group", groups, f"equal groups, two or more each, of {count} experts")
    top = keys.whole("topk_group", 4)
    if top > groups:
        keys.refuse("topk_group", top, f"at most n_group, {groups}")
    chosen = qwen.chosen_experts(keys, count // groups * top, 2)
    width = keys.whole("moe_intermediate_size")
    shared = keys.whole("num_shared_experts", 0, null=True, least=0) or 0
    return Experts(
        count=count,
        chosen=chosen,
        hidden_size=width,
        shared_size=shared * width,
        score="sigmoid",
        normalize=chosen > 1,
        scale=keys.real("routed_scaling_factor", 2.5),
        bias="selects",
        groups=groups,
        top_groups=top,
    )
