"""What each family's original answers: one module a family, found by its `MODEL_TYPES`.

A module has

- `MODEL_TYPES`: values of `model_type` in config.json, in lower case;
- `NEEDS_TRANSFORMERS`: its logits come from that library;
- `KEYS`: every key that the original's configuration class reads, with values that it takes;
- `logits(raw, tensors, ids)`: (B, T, V) from the parsed config.json and {name: float array};
  raises whatever it likes where the original would refuse or not fill all its weights;
- `facts(raw)`: what the config says besides, as fields of `ModelConfig`;
- `must_refuse(raw)`: a reason to refuse that logits of a short text can't show, or None.
"""

import json

import numpy as np

from tests.fuzz.families import a2d, dream, fast_dllm_v2, llada, llada2, llada_moe, sdar

MODULES = (llada, dream, a2d, sdar, fast_dllm_v2, llada_moe, llada2)

# Keys that change the computation in one model or another of the library, and plausible values.
FOREIGN = {
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 5e5},
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_theta": 1e4},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        {"rope_type": "default", "rope_theta": None},
        {"rope_type": "default", "rope_theta": "1e6"},
        {},
    ],
    "rope_scaling": [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"type": "default"},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192},
    ],
    "rope_type": ["linear", "default"],
    "layer_types": [["full_attention"] * 3, ["sliding_attention"] * 3, ["linear_attention"] * 3],
    "sliding_window": [4, 4096, None],
    "use_sliding_window": [True, False],
    "max_window_layers": [0, 1, 28],
    "head_dim": [16, 32, 8],
    "quantization_config": [{"quant_method": "fp8"}, {"quant_method": "gptq", "bits": 4}, None],
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "partial_rotary_factor": [0.5, 1.0],
    "logit_scale": [0.5],
    "final_logit_softcapping": [30.0],
    "attn_logit_softcapping": [50.0],
    "query_pre_attn_scalar": [64],
    "use_qk_norm": [True, False],
    "qk_layernorm": [True],
    "num_experts": [4],
    "num_experts_per_tok": [2],
    "tie_word_embeddings": [True, False],
    "residual_multiplier": [0.5],
    "embedding_multiplier": [2.0],
    "is_decoder": [True],
    "torch_dtype": ["float16", "bfloat16", "float64"],
    "dtype": ["float32", "bfloat16"],
    "bos_token_id": [1],
    "an_unknown_key": [1],
}  # fmt: skip


def family(raw):
    """The module of a parsed config.json's family."""
    kind = str(raw.get("model_type", "")).lower()
    if kind == "llada" and "LLaDAMoEModelLM" in (raw.get("architectures") or []):
        return llada_moe
    for module in MODULES:
        if kind in module.MODEL_TYPES:
            return module
    raise AssertionError(f"no oracle for model_type {kind!r}: add a module to tests/fuzz/families")


def read_tensors(folder):
    """{name: array in float64} by the formats' own libraries."""
    singles = [folder / "model.safetensors", folder / "pytorch_model.bin"]
    files = [f for f in singles if f.exists()][:1]
    if not files:
        index = next(iter(folder.glob("*.index.json")))
        files = sorted({folder / name for name in _weight_map(index).values()})
    out = {}
    for file in files:
        out |= _torch(file) if file.suffix == ".bin" else _safetensors(file)
    return out


def _weight_map(index):
    return json.loads(index.read_text())["weight_map"]


def _safetensors(file):
    from safetensors import safe_open

    with safe_open(str(file), "np") as f:
        return {name: f.get_tensor(name).astype(np.float64) for name in f.keys()}


def _torch(file):
    import torch

    state = torch.load(file, weights_only=True)
    return {name: value.double().numpy() for name, value in state.items()}
