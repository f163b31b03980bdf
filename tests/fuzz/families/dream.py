"""Dream is Qwen2 attending both ways: transformers reads the config and computes."""

from tests.fuzz.families import qwen

MODEL_TYPES = ("dream",)
NEEDS_TRANSFORMERS = True

KEYS = {
    "vocab_size": [151936, 336],
    "hidden_size": [4096, 64, 32],
    "intermediate_size": [22016, 176],
    "num_hidden_layers": [32, 1, 2, 3, 4],
    "num_attention_heads": [32, 1, 2, 4, 8],
    "num_key_value_heads": [32, None, 1, 2, 4],
    "hidden_act": ["silu", "gelu", "relu", "gelu_pytorch_tanh", "swish"],
    "max_position_embeddings": [32768, 16, 131072],
    "initializer_range": [0.02],
    "rms_norm_eps": [1e-6, 1e-5, 1e-2],
    "use_cache": [True, False],
    "tie_word_embeddings": [False, True],
    "rope_theta": [10000.0, 1e6, 5e5],
    "rope_scaling": [None],
    "use_sliding_window": [False, True],
    "sliding_window": [4096, None, 4],
    "max_window_layers": [28, 0],
    "attention_dropout": [0.0, 0.5],
    "mask_token_id": [151666, 320, 1],
    "pad_token_id": [151643, 320, 1],
    "eos_token_id": [320, [320, 321], 1],
    "bos_token_id": [324, None],
}


def _config(raw):
    from transformers import Qwen2Config

    # A copy: the library keeps and changes what it is given.
    raw = {k: v for k, v in raw.items() if k not in ("model_type", "auto_map", "architectures")}
    return Qwen2Config.from_dict(raw, attn_implementation="eager")


def must_refuse(raw):
    if raw.get("quantization_config") is not None:
        return "quantization_config"
    try:
        kinds = set(_config(raw).layer_types or ())
    except Exception:  # noqa: BLE001 - the library refuses it, in one of many ways
        return None
    return "layers that don't attend to everything" if kinds - {"full_attention"} else None


def facts(raw):
    named = {"mask_token_id", "eos_token_id", "pad_token_id"} & raw.keys()
    out = {name: raw[name] for name in named if type(raw[name]) is int}
    return out | {"max_length": raw.get("max_position_embeddings", 32768), "shift_logits": True}


def logits(raw, tensors, ids):
    from transformers import Qwen2ForCausalLM

    return qwen.logits(Qwen2ForCausalLM, _config(raw), tensors, ids)
