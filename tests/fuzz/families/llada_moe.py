"""LLaDA-MoE's configuration, key by key, and what its model computes from it."""

from tests.fuzz.families import mixture
from tests.fuzz.families.mixture import linear, must_refuse
from tests.fuzz.families.strict import Weights

__all__ = ["must_refuse"]

MODEL_TYPES = ("lladamoe",)  # `llada` too, as its class name tells
NEEDS_TRANSFORMERS = False

# Default first, as the configuration class has it; then other values that it knows.
KEYS = {
    "vocab_size": [-1, 336, 320],
    "hidden_size": [-1, 32, 16],
    "dense_intermediate_size": [-1, 64, 8192, None],
    "expert_intermediate_size": [-1, 16, 8],
    "shared_expert_intermediate_size": [-1, None, 16, 0],
    "num_hidden_layers": [-1, 3, 2, 1],
    "num_attention_heads": [-1, 4, 2, 8],
    "num_key_value_heads": [None, 4, 2, 1],
    "hidden_act": ["silu", "gelu"],
    "max_position_embeddings": [4096, 512, 16],
    "initializer_range": [0.02],
    "rms_norm_eps": [1e-5, 1e-6, 1e-2],
    "use_cache": [False, True],
    "pad_token_id": [1, 321],
    "bos_token_id": [None, 320],
    "eos_token_id": [50279, 321, 1],
    "tie_word_embeddings": [False, True],
    "rope_theta": [-1, 50000, 1e6],
    "partial_rotary_factor": [-1, 1, 0.5, 0.25, 0.75, 0.4, 1.5],
    "rope_scaling": [None],
    "attention_bias": mixture.FLAGS,
    "attention_dropout": [0.0, 0.1],
    "clip_qkv": [None, 8.0, 0.3],
    "num_experts_per_tok": [-1, 3, 1, 2, 12, 13],
    "num_experts": [-1, 12, 8],
    "output_router_logits": mixture.FLAGS,
    "router_aux_loss_coef": [0.01, 0.0],
    "norm_topk_prob": [None, True, False],
    "qk_layernorm": [None, True, False],
    "moe_layer_freq": [[], [1, 1, 1], [0, 1, 1], [1, 0], [2, 1, 1, 0]],
    "moe_router_enable_expert_bias": [None, False, True],
    "moe_router_score_function": [None, "softmax", "sigmoid"],
    "routed_scaling_factor": [1, 2.5],
    "router_num_group": [-2, None, 4],
    "router_topk_group": [-2, None, 2],
}


def facts(raw):
    return mixture.facts(raw, 4096)


def logits(raw, tensors, ids, block=None):
    """(B, T, V); `tensors` may be `strict.Weights` too."""
    s = mixture.settings(raw, KEYS)
    w = tensors if isinstance(tensors, Weights) else Weights(tensors)
    d, heads = s["hidden_size"], s["num_attention_heads"]
    kv_heads = heads if s["num_key_value_heads"] is None else s["num_key_value_heads"]
    e, biased = d // heads, s["attention_bias"]
    assert d % heads == 0 and heads % kv_heads == 0

    def layer(n, at):
        a = f"{at}.self_attn"
        parts = [linear(w, f"{a}.{x}_proj", d, m * e, biased)
                 for x, m in (("q", heads), ("k", kv_heads), ("v", kv_heads))]  # fmt: skip
        out = linear(w, f"{a}.o_proj", d, d, biased)
        norms = [w.take(f"{a}.{x}_norm.weight", (e,)) if s["qk_layernorm"] else None for x in "qk"]

        def qkv(x):
            return [part(x).reshape(len(x), -1, e) for part in parts]

        attend = mixture.attend(w, s, norms, qkv, out, block or ids.shape[1])
        if s["moe_layer_freq"][n] == 0:  # and no shared expert
            return attend, mixture.mlp(w, f"{at}.mlp", d, s["dense_intermediate_size"])
        bias = f"{at}.mlp.expert_bias" if s["moe_router_enable_expert_bias"] else None
        choose = mixture.softmax_router(w, d, s, f"{at}.mlp.gate", bias)
        experts = [mixture.mlp(w, f"{at}.mlp.experts.{m}", d, s["expert_intermediate_size"])
                   for m in range(s["num_experts"])]  # fmt: skip
        width = s["shared_expert_intermediate_size"]
        shared = [] if width is None else [mixture.mlp(w, f"{at}.shared_expert", d, width)]
        return attend, mixture.weighted(experts, choose), *shared

    return mixture.model(w, s, "model.embed_tokens", layer, ids)
