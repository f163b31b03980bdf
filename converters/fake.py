"""Hub folders with a released model's exact layout and random weights, for tests and trials.

Config keys, tensor names, number of shards and index are those of the model on the hub;
the values are noise. Nothing is downloaded, and the folder is written as a stream. There are no
tokenizer files, so config.json has the mask id too.
"""

import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from leapjax.checkpoint import new_folder
from leapjax.errors import UserError
from leapjax.model_files import to_json
from leapjax.models import parse_config

from .fake_models import MODELS
from .mapping import HubTensor, expected
from .safetensors_file import write_file
from .tensor import spans

_BFLOAT16, _FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
Entry = tuple[np.dtype, tuple[int, ...]]
"""dtype and shape of a tensor."""
# Inner widths of MLPs and experts.
_INNER = {
    "dense_intermediate_size",
    "expert_intermediate_size",
    "intermediate_size",
    "mlp_hidden_size",
    "moe_intermediate_size",
}


def scaled(model: str, *, layers: int | None = None, scale: int = 1) -> dict:
    """A released model's config, with fewer layers or a smaller width.

    `scale` divides widths, heads and vocabulary; heads stay grouped as they are, the number of
    experts stays.
    """
    if model not in MODELS:
        raise UserError(f"model {model!r}: expected one of {', '.join(MODELS)}")
    raw = dict(MODELS[model][0])
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    if "d_model" in raw:
        names = ("n_layers", "d_model", "n_heads", "n_kv_heads")
    n, width, heads, kv_heads = names
    if layers is not None:
        raw[n] = layers
        for key in {"layer_types", "moe_layer_freq"} & raw.keys():
            raw[key] = raw[key][:1] * layers
    if scale > 1:
        before, groups = raw[heads], raw[heads] // raw[kv_heads]
        raw[kv_heads] = max(1, raw[kv_heads] // scale)
        raw[heads] = groups * raw[kv_heads]
        share = raw.get("head_dim", 0) * before / raw[width]  # of a head's width in the stream's
        raw[width] = raw[width] // scale // (2 * raw[heads]) * (2 * raw[heads])
        if "head_dim" in raw:
            even = 4 if "rotary_dim" in raw else 2
            raw["head_dim"] = int(share * raw[width] / raw[heads]) // even * even
        if "rotary_dim" in raw:
            raw["rotary_dim"] = int(raw["head_dim"] * raw["partial_rotary_factor"])
        for key in _INNER & raw.keys():
            raw[key] //= scale
        # Special ids keep their distance from the end of the vocabulary.
        cut = raw["vocab_size"] - raw["vocab_size"] // scale
        for key in [k for k in raw if k.endswith("_token_id")] + ["vocab_size", "embedding_size"]:
            if raw.get(key) is not None:
                raw[key] -= cut
    parse_config(raw)
    return raw


def write_fake(
    dst: str | os.PathLike,
    raw: dict,
    files: int | str,
    *,
    seed: int = 0,
    sparse: bool = False,
    overwrite: bool = False,
) -> Iterator[int]:
    """Write a hub folder of random bfloat16 weights; a router's bias is float32.

    Yields the bytes of each piece, when it is written. `files` is the number of safetensors files,
    where one makes a plain `model.safetensors`; or the name of a layer's file, with `{}` for its
    number. `sparse`: the headers and the index are written, the weights are holes in the files:
    zeros that take no room on disk.
    """
    entries = {own.name: (_dtype(own), own.shape) for own in expected(parse_config(raw))}
    total = sum(_nbytes(*entry) for entry in entries.values())
    places = (
        _by_size(entries, files, total) if isinstance(files, int) else _by_layer(entries, files)
    )
    with new_folder(dst, overwrite) as folder:
        for file in sorted({*places.values()}):
            own = {name: entry for name, entry in entries.items() if places[name] == file}
            values = None if sparse else lambda name: _noise(name, *entries[name], seed)
            yield from write_file(folder / file, own, values)
        if files != 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (folder / "model.safetensors.index.json").write_bytes(to_json(index))
        (folder / "config.json").write_bytes(to_json(raw))


def _dtype(own: HubTensor) -> np.dtype:
    return _FLOAT32 if own.rows[0].short == "router_bias" else _BFLOAT16


def _nbytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


def _by_size(entries: Mapping[str, Entry], files: int, total: int) -> dict[str, str]:
    """Tensor -> its file, of about equal files."""
    out, end = {}, 0
    for name, entry in entries.items():
        end += _nbytes(*entry)
        at = min((end - 1) * files // total, files - 1)
        out[name] = f"model-{at + 1:05d}-of-{files:05d}.safetensors"
    return out if files > 1 else dict.fromkeys(entries, "model.safetensors")


def _by_layer(entries: Mapping[str, Entry], file: str) -> dict[str, str]:
    """Tensor -> its file, one for each layer and one for the rest."""
    layers = {name: re.search(r"\.(\d+)\.", name) for name in entries}
    return {
        n: file.replace("{}", at[1]) if at else "others.safetensors" for n, at in layers.items()
    }


def _noise(name: str, dtype: np.dtype, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
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
        values = words.view(_BFLOAT16).reshape((stop - start, *shape[1:]))
        yield values.astype(dtype, copy=False)
