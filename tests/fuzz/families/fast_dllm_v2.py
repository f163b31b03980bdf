"""Fast-dLLM v2 is Qwen2 under a block-causal mask: transformers reads the config and computes."""

from tests.fuzz.families import a2d, qwen

MODEL_TYPES = ("fast_dllm_qwen",)
NEEDS_TRANSFORMERS = True

KEYS = a2d.KEYS | {
    "bd_size": [32, 1, 2, 3, 8, 16, 64],
    "conplemenrary_mask": [True, False],
}


def _config(raw):
    import transformers

    left_out = ("model_type", "auto_map", "architectures")
    raw = {k: v for k, v in raw.items() if k not in left_out}
    config = transformers.Qwen2Config.from_dict(raw, attn_implementation="eager")
    return config, transformers.Qwen2ForCausalLM


def must_refuse(raw):
    if raw.get("quantization_config") is not None:
        return "quantization_config"
    try:
        kinds = set(_config(raw)[0].layer_types or ())
    except Exception:  # noqa: BLE001 - the library refuses it, in one of many ways
        return None
    return "layers of another kind" if kinds - {"full_attention"} else None


def facts(raw):
    block = raw.get("bd_size", 32)
    return a2d.facts(raw) | {"block_length": block, "shift_logits": True, "seeds_blocks": True}


def logits(raw, tensors, ids):
    config, kind = _config(raw)
    return qwen.logits(kind, config, tensors, ids, raw.get("bd_size", 32))
