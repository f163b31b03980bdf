"""SDAR is Qwen3 or Qwen3-MoE under a block-causal mask: transformers computes what config says."""

import re

from tests.fuzz.families import a2d, qwen

MODEL_TYPES = ("sdar", "sdar_moe")
NEEDS_TRANSFORMERS = True

KEYS = a2d.KEYS | {
    "block_size": [4, 1, 2, 3, 8, 64, None],
    "stop_ids": [[322, 320], [5], 7],
    "_name_or_path": ["JetLM/SDAR-4B-Chat-b8", "SDAR-b3", "b2", "SDAR-8B"],
    "fuse_cross_entropy": [True, False],
    "debug": [False, True],
    "ep_size": [1, 2],
    "micro_forward": [False, True],
    "skip_checkpoint": [False, True],
    "use_deepep": [False, True],
    "num_experts": [128, 8, 4, 0],
    "num_experts_per_tok": [8, 1, 2, 9],
    "moe_intermediate_size": [768, 16],
    "norm_topk_prob": [False, True, None],
    "decoder_sparse_step": [1, 2, 3],
    "mlp_only_layers": [None, [], [1], [7]],
    "output_router_logits": [False, True],
    "router_aux_loss_coef": [0.001],
}


def _config(raw):
    import transformers

    name = "Qwen3Moe" if raw["model_type"].lower() == "sdar_moe" else "Qwen3"
    left_out = ("model_type", "auto_map", "architectures")
    raw = {k: v for k, v in raw.items() if k not in left_out}
    config = getattr(transformers, f"{name}Config").from_dict(raw, attn_implementation="eager")
    config._experts_implementation = "eager"  # the others have no float64
    return config, getattr(transformers, f"{name}ForCausalLM")


def must_refuse(raw):
    if raw.get("quantization_config") is not None:
        return "quantization_config"
    try:
        kinds = set(_config(raw)[0].layer_types or ())
    except Exception:  # noqa: BLE001 - the library refuses it, in one of many ways
        return None
    return "layers of another kind" if kinds - {"full_attention"} else None


def _block(raw):
    named = re.search(r"-b(\d+)$", str(raw.get("_name_or_path", "")))
    return raw.get("block_size") or (int(named[1]) if named else 4)


def facts(raw):
    return a2d.facts(raw) | {"block_length": _block(raw), "canvas": "to_border"}


def logits(raw, tensors, ids):
    config, kind = _config(raw)
    return qwen.logits(kind, config, tensors, ids, _block(raw))
