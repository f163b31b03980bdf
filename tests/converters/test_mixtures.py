"""Mixtures of experts of every shape that config.json can say, against the originals in NumPy.

Checkpoints are random and in the originals' layout: `strict.Made` notes which tensors the original
takes. `tests/fuzz/families` has the originals, transcribed.
"""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

import leapjax
from leapjax import converters
from tests.fuzz.families import llada2, llada_moe, strict

MOE = {
    "model_type": "llada",
    "architectures": ["LLaDAMoEModelLM"],
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "expert_intermediate_size": 12,
    "dense_intermediate_size": 40,
    "shared_expert_intermediate_size": None,
    "moe_layer_freq": [1, 1, 1],
    "qk_layernorm": True,
    "rope_theta": 5e4,
    "partial_rotary_factor": 1,
    "max_position_embeddings": 64,
    "eos_token_id": 46,
    "pad_token_id": 46,
    "mask_token_id": 47,
}
LLADA2 = {
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "moe_intermediate_size": 10,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "use_bias": False,
    "rope_theta": 6e5,
    "max_position_embeddings": 64,
    "pad_token_id": 46,
    "mask_token_id": 47,
}
# What a checkpoint has besides, and the dtype of its weights; buffers stay float32.
MIXES = {
    "moe-dense-around-shared-biased": (
        MOE, {"moe_layer_freq": [0, 1, 0], "shared_expert_intermediate_size": 20,
              "moe_router_enable_expert_bias": True, "attention_bias": True, "clip_qkv": 0.8,
              "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-6},
        "float32"),
    "moe-one-expert-a-token-tied": (
        MOE, {"moe_layer_freq": [1, 0, 1], "num_experts_per_tok": 1, "qk_layernorm": False,
              "tie_word_embeddings": True, "num_key_value_heads": 1,
              "partial_rotary_factor": 0.75, "norm_topk_prob": True}, "bfloat16"),
    "moe-every-expert-empty-shared": (
        MOE, {"num_experts_per_tok": 6, "shared_expert_intermediate_size": 0,
              "moe_router_enable_expert_bias": True}, "bfloat16"),
    "moe-dense": (MOE, {"moe_layer_freq": [0, 0, 0, 1]}, "float32"),
    "llada2-two-shared-biased": (
        LLADA2, {"n_group": 1, "topk_group": 1, "num_shared_experts": 2, "use_qkv_bias": True,
                 "use_bias": True, "num_key_value_heads": 0, "partial_rotary_factor": 1.0,
                 "first_k_dense_replace": 2, "norm_topk_prob": False}, "float32"),
    "llada2-one-expert-a-token-no-shared": (
        LLADA2, {"num_experts_per_tok": 1, "num_shared_experts": None, "use_qk_norm": False,
                 "first_k_dense_replace": 0, "tie_word_embeddings": True, "head_dim": None,
                 "partial_rotary_factor": 0.25, "moe_router_enable_expert_bias": False},
        "bfloat16"),
    "llada2-empty-shared-odd-rotary": (
        LLADA2, {"num_shared_experts": 0, "n_group": 6, "topk_group": 5, "num_experts_per_tok": 4,
                 "num_key_value_heads": 1, "partial_rotary_factor": 0.45, "rotary_dim": 4,
                 "rms_norm_eps": 1e-5}, "bfloat16"),
    "llada2-all-groups": (LLADA2, {"topk_group": 4, "num_experts_per_tok": 12}, "float32"),
}  # fmt: skip
QUICK = (
    "moe-dense-around-shared-biased",
    "llada2-two-shared-biased",
    "llada2-empty-shared-odd-rotary",
)
IDS = np.random.default_rng(0).integers(0, 48, (2, 19)).astype(np.int32)


def stored(tensors, dtype):
    """As a checkpoint has them, and what the original computes with."""
    kept = {
        name: value.astype("float32" if name.endswith("expert_bias") else dtype)
        for name, value in tensors.items()
    }
    return kept, {name: value.astype(np.float64) for name, value in kept.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MIXES]
)
def test_logits_are_the_originals(name, tmp_path, write_hub, read_all):
    base, more, dtype = MIXES[name]
    raw = base | more
    original = llada_moe if base is MOE else llada2
    block = None if base is MOE else 8
    made = strict.Made(3)
    original.logits(raw, made, IDS[:1, :1], block)
    tensors, values = stored(made.tensors, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    folder = write_hub(tmp_path / "hub", raw, tensors)
    lm = leapjax.load(folder)
    with jax.disable_jit():  # nothing is compiled for a shape that comes once
        got = np.asarray(lm.logits(IDS, block_length=block))
    for row, ref in zip(got, original.logits(raw, values, IDS, block), strict=True):
        assert np.abs(row - ref).max() <= 2e-5 * np.abs(ref).max()
    converters.convert(folder, tmp_path / "out")
    converters.to_hub(tmp_path / "out", tmp_path / "back")
    assert read_all(tmp_path / "back") == read_all(folder)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == raw
