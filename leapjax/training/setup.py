"""What a run starts from: the model's shape and weights, its tokenizer, its data."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from leapjax import checkpoint, models
from leapjax.config import check_keys
from leapjax.errors import UserError
from leapjax.model_files import side_files
from leapjax.models import ModelConfig, transformer
from leapjax.tasks import wordproblem_tokenizer
from leapjax.text import TextCodec, load_codec
from leapjax.training import data
from leapjax.training.config import TrainConfig

# An ordinary LLaDA config.json; the `model` key of a run overrides it.
LLADA = {
    "activation_type": "silu",
    "alibi": False,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 160,
    "embedding_dropout": 0.0,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "max_sequence_length": 512,
    "mlp_hidden_size": 448,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 5,
    "n_kv_heads": None,
    "n_layers": 6,
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 10000.0,
    "scale_logits": False,
    "use_cache": False,
    "weight_tying": False,
}


@dataclasses.dataclass(frozen=True)
class Start:
    """Everything that a run begins with.

    Attributes:
      model: the model's shape.
      raw_config: its `config.json`.
      files: tokenizer files: name -> content.
      codec: its tokenizer, or None.
      folder: where weights to fine-tune come from, or None.
    """

    model: ModelConfig
    raw_config: dict[str, Any]
    files: dict[str, bytes]
    codec: TextCodec | None
    folder: Path | None

    def params(self, seed: int, shardings: Any = None):
        """The first weights, float32: those of `folder`, or random ones.

        Args:
          seed: of random weights.
          shardings: where each goes, a pytree like the parameters; None: the default device.
        """
        if self.folder is None:
            made = functools.partial(transformer.init_params, self.model)
            if shardings is not None:
                made = jax.jit(made, out_shardings=shardings)
            return made(jax.random.key(seed))
        if checkpoint.is_checkpoint(self.folder):
            params = checkpoint.load_params(self.folder, self.model, shardings=shardings)
        else:
            from leapjax import converters

            params = converters.load_hub(self.folder, self.model, shardings=shardings)
        return jax.tree.map(lambda a: a.astype(jnp.float32), params)


def side_content(folder: Path) -> dict[str, bytes]:
    """What a run's model keeps of a folder; `config.json` is written anew."""
    return {n: f.read_bytes() for n, f in side_files(folder).items() if n != "config.json"}


def prepare(config: TrainConfig) -> Start:
    """Find the model's shape, files and tokenizer.

    Args:
      config: the run.

    Raises:
      UserError: no such model or tokenizer, or one that can't be used.
    """
    if config.init_from:
        folder = Path(config.init_from)
        if not checkpoint.is_checkpoint(folder):
            from leapjax import converters

            folder = converters.resolve(config.init_from)
        raw = checkpoint.read_config(folder)
        model = models.parse_config(raw)
        return Start(model, raw, side_content(folder), load_codec(folder, model), folder)
    known = [
        *LLADA,
        "eos_token_id",
        "pad_token_id",
        "mask_token_id",
        "vocab_size",
        "embedding_size",
    ]
    check_keys(config.model, "model", known, "key")
    with tempfile.TemporaryDirectory() as scratch:
        if config.tokenizer:
            folder = Path(config.tokenizer)
        else:
            folder = Path(scratch)
            wordproblem_tokenizer.save(folder)
        raw = LLADA | _token_ids(folder) | config.model
        raw["n_kv_heads"] = raw["n_kv_heads"] or raw["n_heads"]
        model = models.parse_config(raw)
        return Start(model, raw, side_content(folder), load_codec(folder, model), None)


def _token_ids(folder: Path) -> dict[str, int]:
    """Vocabulary size and special ids of a tokenizer, as `config.json` keys."""
    from leapjax.text import files

    read = files.read(folder)
    if read is None:
        raise UserError(f"{folder}: holds no tokenizer")
    size = read.tokenizer.get_vocab_size()
    ids = {}
    for name in ("mask_token", "eos_token", "pad_token"):
        spelling = read.names.get(name, read.names.get("eos_token", ""))
        i = read.tokenizer.token_to_id(spelling)
        if i is None or (name == "mask_token" and name not in read.names):
            raise UserError(f"{folder}: tokenizer_config.json names no {name}")
        ids[f"{name}_id"] = i
    return {"vocab_size": size, "embedding_size": size, **ids}


def batches(config: TrainConfig, start: Start):
    """The run's data.

    Args:
      config: the run.
      start: its model and tokenizer.

    Returns:
      An object with `batch(step)`; see `leapjax.training.data`.

    Raises:
      UserError: the data can't be used.
    """
    model, codec = start.model, start.codec
    if config.task:
        if start.folder is None and not config.tokenizer:
            return data.WordProblems(config.phases, config.seed, block_length=model.block_length)
        if codec is None:
            raise UserError(f"{config.init_from}: the model has no tokenizer")

        def encode(problems):
            end = [codec.eot_id] if codec.eot_id not in (None, model.eos_token_id) else []
            return [
                (codec.encode_prompt(p.question), codec.encode(p.answer, control=False) + end)
                for p in problems
            ]

        return data.WordProblems(
            config.phases,
            config.seed,
            encode,
            model.pad_token_id,
            model.eos_token_id,
            model.block_length,
        )
    if codec is None:
        raise UserError(f"{config.init_from}: the model has no tokenizer")
    ids = model.pad_token_id, model.eos_token_id
    return data.from_jsonl(config, codec, *ids, model.block_length)
