"""`TrainConfig`: everything a training run is made of, read from YAML and flags."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapjax.config import DecodeConfig, check_keys
from leapjax.errors import UserError
from leapjax.options import load_yaml
from leapjax.tasks import DEPENDENCY

# What a resumed run may not change: the state on disk would mean something else.
FIXED = ("seed", "model", "init_from", "tokenizer", "task", "data", "optimizer", "ema_decay")


# What a value may be, as messages say it.
_RANGES = {
    "> 0": lambda x: x > 0,
    ">= 0": lambda x: x >= 0,
    ">= 1": lambda x: x >= 1,
    "0 to 1": lambda x: 0 <= x <= 1,
    ">= 0 and < 1": lambda x: 0 <= x < 1,
}


def _key(default: Any, help: str, expected: str | tuple[str, ...] = "") -> Any:
    """A key: its default, what `--help` says of it, and its range (of `_RANGES`) or its words."""
    return dataclasses.field(default=default, metadata={"help": help, "expected": expected})


def _check(name: str, value: Any, expected: str) -> None:
    if not _RANGES[expected](value):
        raise UserError(f"{name} is {value}, expected {expected}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One kind of batch and what goes into it."""

    share: float  # how often it is drawn, relative to the phase's other kinds
    batch_size: int
    prompt_length: int  # columns for the prompt, in tokens
    # Columns of the canvas, in tokens; for block-causal models, the longest answer with its eos.
    gen_length: int
    strata: dict[str, float]  # stratum -> relative share of the rows
    steps: int = 0  # longest solution to take, in equations (0: any)
    limit: int = 0  # largest number in a problem (0: the task's own limit)
    # For bidirectional models: shares of the rows whose canvas ends at a random place behind the
    # answer, and of those that are masked as a decoder of blocks (of `block_length` tokens) meets
    # them.
    short_share: float = 0.0
    block_share: float = 0.0
    block_length: int = 32
    # The least share of a row (or block, of block-causal models) that is masked:
    # t ~ U(mask_floor, 1). Above 0 the objective is no likelihood bound any more; it shows results
    # whose operands are masked, too, more often.
    mask_floor: float = 0.0

    def __post_init__(self):
        sizes = self.batch_size, self.prompt_length, self.gen_length, self.block_length
        if min(sizes) < 1 or not self.share > 0 or not sum(self.strata.values()) > 0:
            raise UserError("sizes, shares and the sum of strata have to be positive")
        _check("short_share", self.short_share, "0 to 1")
        _check("block_share", self.block_share, "0 to 1")
        _check("mask_floor", self.mask_floor, ">= 0 and < 1")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with its own kinds of batches (easy problems first)."""

    until: int  # the step at which the phase ends (0: the end of the run)
    batches: tuple[Shape, ...]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run; the field names are the YAML keys and, with dashes, the flags.

    `model`, `phases` and `decode` have a structure of their own and no flag: `config.json` keys
    of a model to train from scratch (`model_type` is llada without it), what the task's batches
    hold and when, and decode options that suit the model (exported with it as decode.yaml).
    """

    output: str = _key("", "folder for checkpoints and metrics")
    seed: int = _key(0, "seed of weights, data and masks", ">= 0")
    steps: int = _key(1000, "optimiser steps of the whole run and of its schedule", ">= 1")
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    init_from: str = _key("", "checkpoint, hub folder or hub id to fine-tune")
    tokenizer: str = _key("", "folder of tokenizer files for a model from scratch")
    task: str = _key(
        "",
        "built-in data: wordproblems, or dependency (or one of its tasks)",
        ("", "wordproblems", *DEPENDENCY),
    )
    phases: tuple[Phase, ...] = ()
    data: str = _key("", "JSONL file of prompt/response, messages or text records")
    batch_size: int = _key(16, "rows of a batch (with data)", ">= 1")
    prompt_length: int = _key(128, "columns for prompts, in tokens (with data)", ">= 1")
    gen_length: int = _key(
        128, "columns for answers and their eos padding, in tokens (with data)", ">= 1"
    )
    sequence_length: int = _key(
        256, "columns of a text row, in tokens; longer texts are cut up", ">= 1"
    )
    too_long: str = _key(
        "error", "what to do with a record that does not fit: error or skip", ("error", "skip")
    )
    optimizer: str = _key("adamw", "adamw or muon", ("adamw", "muon"))
    learning_rate: float = _key(1e-3, "peak learning rate", "> 0")
    adam_learning_rate: float = _key(
        0.0, "peak learning rate where Muon is not used (0: learning-rate)", ">= 0"
    )
    warmup_steps: int = _key(100, "steps of linear warm-up", ">= 0")
    final_learning_rate: float = _key(0.0, "end of the cosine, as a share of the peak", ">= 0")
    weight_decay: float = _key(0.05, "decoupled weight decay, on the layers' matrices only", ">= 0")
    adam_b2: float = _key(0.99, "Adam's second decay rate", ">= 0 and < 1")
    clip_norm: float = _key(1.0, "maximum global norm of the gradient", "> 0")
    balance: float = _key(
        0.0, "weight, per layer, of the load-balancing loss for experts (0: none)", ">= 0"
    )
    ema_decay: float = _key(
        0.0, "decay per step of the moving average of the weights (0: no average)", ">= 0 and < 1"
    )
    checkpoint_every: int = _key(500, "steps between checkpoints", ">= 1")
    keep: int = _key(2, "number of newest checkpoints to keep", ">= 1")
    log_every: int = _key(50, "steps between two lines of metrics", ">= 1")
    decode: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), field.metadata.get("expected")
            if isinstance(expected, tuple):
                check_keys([value], field.name, expected, "value")
            elif expected:
                _check(field.name, value, expected)
        if not self.output:
            raise UserError("output is missing; name a folder for checkpoints and metrics")
        if bool(self.task) == bool(self.data):
            raise UserError("give either task (the generator) or data (a JSONL file)")
        if bool(self.model) == bool(self.init_from):
            raise UserError("give either model (from scratch) or init_from (to fine-tune)")
        if self.task and not self.phases:
            raise UserError("task needs phases: which batches to draw, and until when")
        if self.tokenizer and self.init_from:
            raise UserError("tokenizer is for a model from scratch; init_from brings its own")
        check_keys(self.decode, "decode")
        DecodeConfig(**self.decode)

    def to_dict(self) -> dict[str, Any]:
        """Every key and value, JSON-ready."""
        return dataclasses.asdict(self)


_HINTS = typing.get_type_hints(TrainConfig)
FIELDS = {f.name: _HINTS[f.name] for f in dataclasses.fields(TrainConfig)}
# Keys with a structure of their own, which have no flag.
STRUCTURED = ("model", "phases", "decode")


def _convert(name: str, kind, value):
    """Bring a YAML value to a plain field's type, or say why not."""
    wanted = {int: "a whole number", float: "a number", str: "a word"}[kind]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str and isinstance(value, str):
        return value
    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    raise UserError(f"{name} is {value!r}; expected {wanted}")


def _structure(kind, value, where: str):
    """A mapping as a Shape or Phase."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected keys and values")
    hints = typing.get_type_hints(kind)
    check_keys(value, where, hints, "key")
    out = {}
    for field in dataclasses.fields(kind):
        if field.name not in value:
            if field.default is dataclasses.MISSING:
                raise UserError(f"{where}: {field.name} is missing")
            continue
        given = value[field.name]
        if field.name == "batches":
            if not isinstance(given, list) or not given:
                raise UserError(f"{where}: batches should be a list of kinds of batches")
            out["batches"] = tuple(
                _structure(Shape, b, f"{where} batch {i + 1}") for i, b in enumerate(given)
            )
        elif field.name == "strata":
            if not isinstance(given, Mapping) or not given:
                raise UserError(f"{where}: strata should be names and shares")
            out["strata"] = {
                k: _convert(f"{where}: strata {k}", float, v) for k, v in given.items()
            }
        else:
            out[field.name] = _convert(f"{where}: {field.name}", hints[field.name], given)
    try:
        return kind(**out)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e


def make(values: Mapping[str, Any], where: str = "config") -> TrainConfig:
    """Build a config from plain values.

    `where` begins messages, such as the file's name.
    """
    check_keys(values, where, FIELDS, "key")
    out: dict[str, Any] = {}
    try:
        for name, value in values.items():
            if name in ("model", "decode"):
                if not isinstance(value, Mapping):
                    raise UserError(f"{name}: expected keys and values")
                out[name] = dict(value)
            elif name == "phases":
                if not isinstance(value, list | tuple):
                    raise UserError("phases: expected a list")
                out[name] = tuple(
                    _structure(Phase, p, f"phase {i + 1}") for i, p in enumerate(value)
                )
            else:
                out[name] = _convert(name, FIELDS[name], value)
        return TrainConfig(**out)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e


def read(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, unchecked."""
    value = load_yaml(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values, such as `steps: 1000`")
    return value
