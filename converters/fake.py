"""Hub folders with a released model's exact layout and random weights, for tests and trials.

Config keys, tensor names, number of shards and index are those of the model on the hub;
the values are noise. Nothing is downloaded, and the folder is written as a stream. There are no
tokenizer files, so config.json has the mask id too.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from leapjax.checkpoint import new_folder
from leapjax.errors import UserError
from leapjax.models import parse_config

from .mapping import expected
from .safetensors_file import write_file
from .tensor import spans

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

_LLADA_8B = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
_DREAM_7B = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_dream.DreamConfig",
        "AutoModel": "modeling_dream.DreamModel",
    },
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "Dream",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def _sdar(width: int, layers: int, heads: int, inner: int) -> dict:
    """The config.json of a dense SDAR or TraDo."""
    return {
        "architectures": ["SDARForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_sdar.SDARConfig",
            "AutoModel": "modeling_sdar.SDARModel",
            "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
        },
        "block_size": 4,
        "bos_token_id": 151643,
        "debug": False,
        "eos_token_id": 151643,
        "ep_size": 1,
        "fuse_cross_entropy": True,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "mask_token_id": 151669,
        "max_position_embeddings": 32768,
        "max_window_layers": layers,
        "micro_forward": False,
        "model_type": "sdar",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "skip_checkpoint": False,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.4",
        "use_cache": True,
        "use_deepep": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }


def _fast_dllm_v2(**shape: object) -> dict:
    """The config.json of a Fast-dLLM v2."""
    return {
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration.Fast_dLLM_QwenConfig",
            "AutoModel": "modeling.Fast_dLLM_QwenModel",
            "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
        },
        "bd_size": 32,
        "bos_token_id": 151643,
        "conplemenrary_mask": True,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "layer_types": ["full_attention"] * 28,
        "mask_token_id": 151665,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "Fast_dLLM_Qwen",
        "num_hidden_layers": 28,
        "pad_token_id": 151645,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.53.1",
        "use_cache": True,
        "use_sliding_window": False,
        **shape,
    }


MODELS = {
    "llada-8b-instruct": (_LLADA_8B, 6),
    "dream-7b-instruct": (_DREAM_7B, 4),
    "sdar-1.7b-chat": (_sdar(2048, 28, 16, 6144), 1),
    "sdar-4b-chat": (_sdar(2560, 36, 32, 9728), 2),
    "sdar-8b-chat": (_sdar(4096, 36, 32, 12288), 4),
    "trado-4b-instruct": (_sdar(2560, 36, 32, 9728), 2),
    "trado-8b-instruct": (_sdar(4096, 36, 32, 12288), 4),
    "fast-dllm-v2-7b": (
        _fast_dllm_v2(
            hidden_size=3584,
            intermediate_size=18944,
            num_attention_heads=28,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            vocab_size=152064,
        ),
        4,
    ),
    "fast-dllm-v2-1.5b": (
        _fast_dllm_v2(
            hidden_size=1536,
            intermediate_size=8960,
            num_attention_heads=12,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            vocab_size=151936,
        ),
        1,
    ),
}
"""Name -> (config.json, number of shards).

Shards are the hub's for LLaDA, Dream and Fast-dLLM v2 7B; else as transformers cuts (5 GB). Of
Fast-dLLM v2 1.5B the shape is its parent's, Qwen2.5-1.5B.
"""


def scaled(model: str, *, layers: int | None = None, scale: int = 1) -> dict:
    """A released model's config, with fewer layers or a smaller width.

    Args:
      model: name in `MODELS`.
      layers: number of layers; None keeps the model's.
      scale: divides widths, heads and vocabulary (heads stay grouped as they are).

    Raises:
      UserError: unknown model, or a scale that leaves nothing.
    """
    if model not in MODELS:
        raise UserError(f"model {model!r}: expected one of {', '.join(MODELS)}")
    raw = dict(MODELS[model][0])
    llada = raw["model_type"] == "llada"
    names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "mlp_hidden_size")
    if not llada:
        names = (
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
        )
    n, width, heads, kv_heads, inner = names
    if layers is not None:
        raw[n] = layers
        if "layer_types" in raw:
            raw["layer_types"] = raw["layer_types"][:1] * layers
    if scale > 1:
        before, groups = raw[heads], raw[heads] // raw[kv_heads]
        raw[kv_heads] = max(1, raw[kv_heads] // scale)
        raw[heads] = groups * raw[kv_heads]
        share = raw.get("head_dim", 0) * before / raw[width]  # of a head's width in the stream's
        raw[width] = raw[width] // scale // (2 * raw[heads]) * (2 * raw[heads])
        if "head_dim" in raw:
            raw["head_dim"] = int(share * raw[width] / raw[heads]) // 2 * 2
        raw[inner] //= scale
        # Special ids keep their distance from the end of the vocabulary.
        cut = raw["vocab_size"] - raw["vocab_size"] // scale
        for key in [k for k in raw if k.endswith("_token_id")] + ["vocab_size", "embedding_size"]:
            if key in raw:
                raw[key] -= cut
    parse_config(raw)
    return raw


def write_fake(
    dst: str | os.PathLike,
    raw: dict,
    shards: int,
    *,
    seed: int = 0,
    overwrite: bool = False,
) -> Iterator[int]:
    """Write a hub folder of random bfloat16 weights.

    Args:
      dst: folder to create.
      raw: its config.json.
      shards: number of safetensors files; one makes a plain `model.safetensors`.
      seed: of the noise.
      overwrite: replace a model's folder at `dst`.

    Yields:
      Bytes of each piece, when it is written.

    Raises:
      UserError: the folder can't be written.
    """
    shapes = {row.hub_name(layer): row.hub_shape() for row, layer in expected(parse_config(raw))}
    total = sum(math.prod(s) for s in shapes.values()) * 2
    groups: list[list[str]] = [[] for _ in range(shards)]
    end = 0
    for name, shape in shapes.items():
        end += math.prod(shape) * 2
        groups[min((end - 1) * shards // total, shards - 1)].append(name)
    single = shards == 1
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    files = ["model.safetensors"] if single else files
    with new_folder(dst, overwrite) as folder:
        for file, names in zip(files, groups, strict=True):
            entries = {name: (_BFLOAT16, shapes[name]) for name in names}
            yield from write_file(folder / file, entries, lambda n: _noise(n, shapes[n], seed))
        if not single:
            weight_map = {
                name: file for file, names in zip(files, groups, strict=True) for name in names
            }
            index = {
                "metadata": {"total_size": total},
                "weight_map": dict(sorted(weight_map.items())),
            }
            _write(folder / "model.safetensors.index.json", index)
        _write(folder / "config.json", raw)


def _noise(name: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """Values of one tensor: norms in [1, 2), the rest in +-[1/64, 1/32).

    Made of random bits below a fixed exponent, which is as fast as a disk.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    norm = len(shape) == 1 and name.endswith(".weight")
    keep, exponent = (0x007F, 127) if norm else (0x807F, 127 - 6)
    for start, stop in spans(shape, _BFLOAT16):
        count = math.prod((stop - start, *shape[1:]))
        words = rng.integers(0, 2**64, -(-count // 4), dtype=np.uint64).view(np.uint16)[:count]
        words &= np.uint16(keep)
        words |= np.uint16(exponent << 7)
        yield words.view(_BFLOAT16).reshape((stop - start, *shape[1:]))


def _write(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
