"""What a run starts from: the model's shape and weights, its tokenizer, its data."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from leapjax import checkpoint, models, tasks
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.model_files import side_files, to_json
from leapjax.models import ModelConfig, transformer
from leapjax.tasks import wordproblem_tokenizer
from leapjax.text import TextCodec, load_codec
from leapjax.training import data, from_scratch
from leapjax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Start:
    """Everything that a run begins with."""

    model: ModelConfig
    raw_config: dict[str, Any]  # its `config.json`
    files: dict[str, bytes]  # tokenizer files: name -> content
    codec: TextCodec | None
    folder: Path | None  # where weights to fine-tune come from, or None

    def params(self, seed: int, shardings: Any = None):
        """The first weights, float32: those of `folder`, or random ones.

        `shardings` says where each goes (None: the default device).
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
    """Find the model's shape, files and tokenizer; the decode options have to go with them."""
    start = _fine_tuned(config) if config.init_from else _from_scratch(config)
    try:
        DecodeConfig(**config.decode).for_model(start.model)
    except UserError as e:
        raise UserError(f"decode: {e}") from e
    return start


def _fine_tuned(config: TrainConfig) -> Start:
    folder = Path(config.init_from)
    if not checkpoint.is_checkpoint(folder):
        from leapjax import converters

        folder = converters.resolve(config.init_from)
    raw = checkpoint.read_config(folder)
    model = models.parse_config(raw)
    if not model.has_attention:
        raise UserError(
            f"init_from: {config.init_from} is a {model.family}, which leapjax.chains.fit fits; "
            "name a transformer"
        )
    return Start(model, raw, side_content(folder), load_codec(folder, model), folder)


def _from_scratch(config: TrainConfig) -> Start:
    with tempfile.TemporaryDirectory() as scratch:
        if config.tokenizer:
            folder = Path(config.tokenizer)
        else:
            folder = Path(scratch)
            build = tasks.get(config.task or "wordproblems").tokenizer
            wordproblem_tokenizer.save(folder, build() if build else None)
        raw = from_scratch.config(config.model, _token_ids(folder), config.balance)
        model = models.parse_config(raw)
        files = side_content(folder)
        if model.block_causal:  # their originals look for stop ids there
            stops = {"eos_token_id": [*model.stop_ids] or [model.eos_token_id]}
            files.setdefault("generation_config.json", to_json(stops))
        return Start(model, raw, files, load_codec(folder, model), None)


def _token_ids(folder: Path) -> dict[str, int]:
    """Vocabulary size and special ids of a tokenizer, by their `config.json` keys."""
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
    """The run's data: an object with `batch(step)`; see `leapjax.training.data`."""
    model, codec = start.model, start.codec
    if config.task:
        if codec is None:
            raise UserError(f"{config.init_from}: the model has no tokenizer")

        end = [codec.eot_id] if codec.eot_id not in (None, model.eos_token_id) else []

        def encode(prompt, problem):
            answer = codec.encode(problem.answer, control=False)
            return codec.encode_prompt(prompt), answer + end

        return data.Generated(
            tasks.get(config.task),
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
