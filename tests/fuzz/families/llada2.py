"""LLaDA2's configuration, key by key, and what its model computes from it."""

from tests.fuzz.families import mixture
from tests.fuzz.families.mixture import linear, must_refuse
from tests.fuzz.families.strict import Weights

__all__ = ["must_refuse"]

MODEL_TYPES = ("llada2_moe", "llada2_moe_veomni")
NEEDS_TRANSFORMERS = False

# Default first, as the configuration class has it; then other values that it knows.
KEYS = {
    "vocab_size": [30592, 336, 320],
    "hidden_size": [1024, 32, 16],
    "intermediate_size": [None, 64, 128],
    "num_hidden_layers": [24, 3, 2, 1],
    "num_attention_heads": [16, 4, 2, 8],
    "num_key_value_heads": [0, 2, 4, 1, 3],
    "hidden_act": ["silu", "gelu"],
    "use_qkv_bias": mixture.FLAGS,
    "use_qk_norm": [True, False],
    "use_bias": [True, False],
    "rms_norm_eps": [1e-5, 1e-6, 1e-2],
    "norm_head": mixture.FLAGS,
    "norm_softmax": mixture.FLAGS,
    "use_rmsnorm": [True, False],
    "tie_word_embeddings": mixture.FLAGS,
    "embedding_dropout": [0.1, 0.0],
    "attention_dropout": [0.1, 0.0],
    "output_dropout": [0.1, 0.0],
    "initializer_range": [0.02],
    "max_position_embeddings": [16384, 512, 16],
    "rope_theta": [10000.0, 600000, 1e6],
    "use_cache": [True, False],
    "use_sliding_window": [False, True],
    "sliding_window": [4096, None, 4],
    "max_window_layers": [28, 0],
    "rope_scaling": [None],
    "pad_token_id": [126081, 321, 1],
    "eos_token_id": [321, 1, None],
    "mask_token_id": [324, 2, None],
    "num_experts": [16, 12, 8],
    "num_shared_experts": [0, 1, 2, None],
    "num_experts_per_tok": [2, 3, 1, 6, 7],
    "n_group": [8, 4, 1, 2, 3, 5, 12],
    "topk_group": [4, 2, 1, 3, 5],
    "routed_scaling_factor": [2.5, 1.0, 0.5],
    "moe_intermediate_size": [None, 16, 8],
    "first_k_dense_replace": [0, 1, 2, 9],
    "head_dim": [None, 16, 8],
    "output_router_logits": mixture.FLAGS,
    "partial_rotary_factor": [0.5, 1.0, 0.25, 0.75, 0.4, 1.5],
    "rotary_dim": [8, 64, 3],
    "norm_topk_prob": [True, False],
    "score_function": ["sigmoid", "softmax"],
    "router_dtype": ["fp32", "bf16"],
    "moe_router_enable_expert_bias": [True, False],
    "using_split_qkv_in_self_attention": mixture.FLAGS,
    "expert_capacity": [None, 64],
}


def facts(raw):
    return mixture.facts(raw, 16384) | {"block_length": 32, "canvas": "overhang"}


def logits(raw, tensors, ids, block=32):
    """(B, T, V); `tensors` may be `strict.Weights` too."""
    s = mixture.settings(raw, KEYS)
    w = tensors if isinstance(tensors, Weights) else Weights(tensors)
    d, heads = s["hidden_size"], s["num_attention_heads"]
    kv_heads = s["num_key_value_heads"] or heads
    e = s["head_dim"] or d // heads
    assert heads % kv_heads == 0
    wide = heads + 2 * kv_heads

    def layer(n, at):
        a = f"{at}.attention"
        fused = linear(w, f"{a}.query_key_value", d, wide * e, s["use_qkv_bias"])
        out = linear(w, f"{a}.dense", heads * e, d, s["use_bias"])
        norms = [w.take(f"{a}.{x}_layernorm.weight", (e,)) if s["use_qk_norm"] else None
                 for x in ("query", "key")]  # fmt: skip

        def qkv(x):
            parts = fused(x).reshape(len(x), wide, e)
            ends = heads, heads + kv_heads
            return parts[:, : ends[0]], parts[:, ends[0] : ends[1]], parts[:, ends[1] :]

        attend = mixture.attend(w, s, norms, qkv, out, block)
        if n < s["first_k_dense_replace"]:
            return attend, mixture.mlp(w, f"{at}.mlp", d, s["intermediate_size"])
        choose = mixture.sigmoid_router(w, d, s, f"{at}.mlp.gate")
        width = s["moe_intermediate_size"]
        experts = [mixture.mlp(w, f"{at}.mlp.experts.{m}", d, width)
                   for m in range(s["num_experts"])]  # fmt: skip
        shared, number = [], s["num_shared_experts"]
        if number is not None:
            shared = [mixture.mlp(w, f"{at}.mlp.shared_experts", d, number * width)]
        return attend, mixture.weighted(experts, choose), *shared

    return mixture.model(w, s, "model.word_embeddings", layer, ids)
