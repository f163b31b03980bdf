"""A2D is Qwen3 or Qwen2 attending both ways: transformers reads the config and computes."""

from tests.fuzz.families import qwen

MODEL_TYPES = ("a2d-qwen3", "a2d-qwen2")
NEEDS_TRANSFORMERS = True

KEYS = {
    "vocab_size": [151936, 336],
    "hidden_size": [4096, 48, 32],
    "intermediate_size": [22016, 96, 80],
    "num_hidden_layers": [32, 1, 2, 3, 4],
    "num_attention_heads": [32, 1, 2, 4, 6],
    "num_key_value_heads": [32, None, 1, 2, 4],
    "head_dim": [128, 16, 8],
    "hidden_act": ["silu", "gelu", "relu", "gelu_pytorch_tanh", "swish"],
    "max_position_embeddings": [32768, 16, 131072],
    "initializer_range": [0.02],
    "rms_norm_eps": [1e-6, 1e-5, 1e-2],
    "use_cache": [True, False],
    "tie_word_embeddings": [False, True],
    "rope_theta": [10000.0, 1e6, 5e5],
    "rope_scaling": [None],
    "attention_bias": [False, True],
    "use_sliding_window": [False, True],
    "sliding_window": [4096, None, 4],
    "max_window_layers": [28, 0],
    "layer_types": [["full_attention"] * 3, ["sliding_attention"] * 3, ["sliding_attention"] * 2],
    "attention_dropout": [0.0, 0.5],
    "mask_token_id": [327, 325, 1, None],
    "pad_token_id": [320, 1, None],
    "eos_token_id": [322, [322], 1, None],
    "bos_token_id": [320, None],
}


def _config(raw):
    """The library's class, and its model's."""
    import transformers

    name = "Qwen" + raw["model_type"].lower()[-1]
    left_out = ("model_type", "auto_map", "architectures")
    raw = {k: v for k, v in raw.items() if k not in left_out}
    config = getattr(transformers, f"{name}Config").from_dict(raw, attn_implementation="eager")
    # Under the mask that A2D passes, windows say nothing; a window's layer takes that mask too.
    return config, getattr(transformers, f"{name}ForCausalLM")


def must_refuse(raw):
    if raw.get("quantization_config") is not None:
        return "quantization_config"
    try:
        kinds = set(_config(raw)[0].layer_types or ())
    except Exception:  # noqa: BLE001 - the library refuses it, in one of many ways
        return None
    return "layers of another kind" if kinds - {"full_attention", "sliding_attention"} else None


def facts(raw):
    named = {"mask_token_id", "eos_token_id", "pad_token_id"} & raw.keys()
    out = {name: raw[name] for name in named if type(raw[name]) is int}
    return out | {"max_length": raw.get("max_position_embeddings", 32768), "shift_logits": False}


def logits(raw, tensors, ids):
    config, kind = _config(raw)
    return qwen.logits(kind, config, tensors, ids)
