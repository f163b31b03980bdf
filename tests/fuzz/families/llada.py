"""LLaDA's configuration, key by key, and what its model computes from it, in NumPy float64.

Transcribed from the meaning of the hub's `configuration_llada.py` and `modeling_llada.py`, not
from leapjax. Values are taken as Python takes them there: a flag is whatever is true.
"""

import math

import numpy as np

from tests.fuzz.families.strict import Weights
from tests.models.transcription import attention, rms_norm, rotate

MODEL_TYPES = ("llada",)
NEEDS_TRANSFORMERS = False
_BLOCKS = "model.transformer.blocks.{}"

# Default first, as the configuration class has it; then other values that it knows.
KEYS = {
    "d_model": [768, 32, 64],
    "n_heads": [12, 1, 2, 4, 8],
    "n_kv_heads": [None, 1, 2, 4],
    "n_layers": [12, 1, 2, 4],
    "mlp_ratio": [4, 2, 2.75, 3.5],
    "mlp_hidden_size": [None, 176, 128],
    "activation_type": ["swiglu", "silu", "gelu", "relu"],
    "block_type": ["sequential", "llama", "parallel"],
    "block_group_size": [1, 2, 3],
    "alibi": [False, True],
    "alibi_bias_max": [8.0, 4.0],
    "rope": [False, True],
    "rope_full_precision": [True, False],
    "flash_attention": [False, True],
    "attention_dropout": [0.1, 0.0, 0.5],
    "multi_query_attention": [None, True, False],
    "attention_layer_norm": [False, True],
    "residual_dropout": [0.1, 0.0, 0.5],
    "embedding_dropout": [0.1, 0.0, 0.5],
    "input_emb_norm": [False, True],
    "layer_norm_type": ["default", "rms", "low_precision", "gemma_rms", "amd_compatible"],
    "layer_norm_with_affine": [True, False],
    "rms_norm_eps": [1e-5, 1e-6, 1e-2],
    "attention_layer_norm_with_affine": [True, False],
    "max_sequence_length": [1024, 4096, 16],
    "rope_theta": [10000.0, 500000.0, 1e6],
    "include_qkv_bias": [False, True, None],
    "include_bias": [False, True],
    "bias_for_layer_norm": [None, True, False],
    "scale_logits": [False, True],
    "vocab_size": [50257, 336, 300],
    "embedding_size": [50304, None, 336, 384],
    "weight_tying": [True, False],
    "eos_token_id": [50256, 1, 320],
    "pad_token_id": [50256, 1, 320],
    "mask_token_id": [50256, 2, 325],
    "init_device": [None, "cpu", "meta"],
    "init_fn": ["normal", "mitchell"],
    "init_std": [0.02, 1.0],
    "init_cutoff_factor": [None, 3.0],
    "precision": [None, "amp_bf16", "fp32"],
    "clip_qkv": [None, 8.0, 0.01],
}


def _settings(raw):
    s = {key: values[0] for key, values in KEYS.items()} | raw
    # Version 5 of transformers moves it there when it writes such a config.
    rope = raw.get("rope_parameters")
    if "rope_theta" not in raw and isinstance(rope, dict) and "rope_theta" in rope:
        s["rope_theta"] = rope["rope_theta"]
    return s


def must_refuse(raw):
    if raw.get("quantization_config") is not None:
        return "quantization_config"
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        return "another kind of rotary embedding"
    if rope.get("rope_theta", raw.get("rope_theta")) != raw.get(
        "rope_theta", rope.get("rope_theta")
    ):
        return "two rope_theta"
    return None


def facts(raw):
    s = _settings(raw)
    # Absent ids have defaults that lie outside small vocabularies; only written ones count.
    named = {"mask_token_id", "eos_token_id", "pad_token_id"} & raw.keys()
    out = {name: raw[name] for name in named if type(raw[name]) is int}
    return out | {"max_length": s["max_sequence_length"], "shift_logits": False}


def _kv_heads(s):
    if s["n_kv_heads"] is None:
        return 1 if s["multi_query_attention"] is True else s["n_heads"]
    if s["multi_query_attention"] is None:
        return s["n_kv_heads"]
    needed = 1 if s["multi_query_attention"] else s["n_heads"]
    assert s["n_kv_heads"] == needed, "both n_kv_heads and multi_query_attention"
    return needed


def _norm(s, weight, bias):
    """The function that a norm is."""
    if not s["layer_norm_with_affine"]:
        weight = bias = None
    kind, eps = s["layer_norm_type"], s["rms_norm_eps"]
    one = 1.0 if weight is None else weight
    if kind == "rms":
        return lambda x: rms_norm(x, one, bias, eps)
    if kind == "gemma_rms":
        return lambda x: rms_norm(x, 1.0 if weight is None else 1 + weight, bias, eps)
    assert kind in ("default", "low_precision"), kind

    def layer_norm(x):
        centred = x - x.mean(-1, keepdims=True)
        out = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * one
        return out if bias is None else out + bias

    return layer_norm


def _activation(kind):
    if kind == "silu":
        return lambda x: x / (1 + np.exp(-x))
    if kind == "relu":
        return lambda x: np.maximum(x, 0)
    assert kind == "gelu", kind  # swiglu halves the width, which no `ff_out` here has
    return lambda x: np.array([v * 0.5 * (1 + math.erf(v / 2**0.5)) for v in x.flat]).reshape(
        x.shape
    )


def logits(raw, tensors, ids):
    s = _settings(raw)
    assert not s["alibi"] and s["rope"], "the model asserts both"
    assert s["block_type"] == "llama" and s["block_group_size"] == 1
    assert not s["attention_layer_norm"], "no checkpoint here has such norms"
    d, n_heads, n_kv = s["d_model"], s["n_heads"], _kv_heads(s)
    inner = s["mlp_hidden_size"] if s["mlp_hidden_size"] is not None else s["mlp_ratio"] * d
    assert d % n_heads == 0 and n_heads % n_kv == 0 and inner == int(inner)
    width, inner = d // n_heads, int(inner)
    vocabulary = s["embedding_size"] or s["vocab_size"]
    if s["embedding_size"] is not None:
        assert s["embedding_size"] >= s["vocab_size"]
    affine_bias = (
        s["include_bias"] if s["bias_for_layer_norm"] is None else s["bias_for_layer_norm"]
    )
    w = Weights(tensors)

    def norm(name):
        affine = s["layer_norm_with_affine"]
        weight = w.take(f"{name}.weight", (d,)) if affine else w.drop(f"{name}.weight")
        bias = w.take(f"{name}.bias", (d,)) if affine and affine_bias else None
        if not affine:
            w.drop(f"{name}.bias")
        return _norm(s, weight, bias)

    def linear(name, n_in, n_out, biased):
        matrix = w.take(f"{name}.weight", (n_out, n_in))
        bias = w.take(f"{name}.bias", (n_out,)) if biased else 0.0
        return lambda x: x @ matrix.T + bias

    embed = w.take("model.transformer.wte.weight", (vocabulary, d))
    plain, qkv = bool(s["include_bias"]), bool(s["include_bias"] | (s["include_qkv_bias"] or False))
    act = _activation(s["activation_type"])
    layers = []
    for n in range(s["n_layers"]):
        at = _BLOCKS.format(n)
        layers.append({
            "attn_norm": norm(f"{at}.attn_norm"),
            "ff_norm": norm(f"{at}.ff_norm"),
            "q": linear(f"{at}.q_proj", d, d, qkv),
            "k": linear(f"{at}.k_proj", d, n_kv * width, qkv),
            "v": linear(f"{at}.v_proj", d, n_kv * width, qkv),
            "o": linear(f"{at}.attn_out", d, d, plain),
            "gate": linear(f"{at}.ff_proj", d, inner, plain),
            "up": linear(f"{at}.up_proj", d, inner, plain),
            "down": linear(f"{at}.ff_out", inner, d, plain),
        })  # fmt: skip
    final = norm("model.transformer.ln_f")
    if s["weight_tying"]:
        head = lambda x: x @ embed.T  # noqa: E731
        w.drop("model.transformer.ff_out.weight")
    else:
        head = linear("model.transformer.ff_out", d, vocabulary, plain)
    w.done()
    clip = s["clip_qkv"]

    def one(row):
        x = embed[row] * (d**0.5 if s["input_emb_norm"] else 1.0)
        places = np.arange(len(row))
        for layer in layers:
            y = layer["attn_norm"](x)
            q, k, v = (layer[name](y) for name in "qkv")
            if clip is not None:
                q, k, v = (np.clip(t, -clip, clip) for t in (q, k, v))
            q = rotate(q.reshape(len(row), n_heads, width), places, s["rope_theta"])
            k = rotate(k.reshape(len(row), n_kv, width), places, s["rope_theta"])
            x = x + layer["o"](attention(q, k, v.reshape(len(row), n_kv, width)))
            y = layer["ff_norm"](x)
            x = x + layer["down"](act(layer["gate"](y)) * layer["up"](y))
        return head(final(x)) * (d**-0.5 if s["scale_logits"] else 1.0)

    return np.stack([one(row) for row in ids])
