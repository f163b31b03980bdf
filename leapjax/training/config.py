"""`TrainConfig`: everything a training run is made of, read from YAML and flags."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from leapjax.config import DecodeConfig, check_keys
from leapjax.errors import UserError
from leapjax.options import _Yaml
from leapjax.tasks import DEPENDENCY

OPTIMIZERS = ("adamw", "muon")
TOO_LONG = ("error", "skip")
# What a resumed run may not change: the state on disk would mean something else.
FIXED = ("seed", "model", "init_from", "tokenizer", "task", "data", "optimizer", "ema_decay")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One kind of batch and what goes into it.

    Attributes:
      share: how often it is drawn, relative to the phase's other kinds.
      batch_size: rows B.
      prompt_length: columns for the prompt, in tokens.
      gen_length: columns of the canvas, in tokens; for block-causal models, the longest answer
        with its eos.
      strata: stratum -> relative share of the rows.
      steps: longest solution to take, in equations (0: any).
      limit: largest number in a problem (0: the task's own limit).
      short_share: share of the rows whose canvas ends at a random place behind the answer; for
        bidirectional models.
      block_share: share of the rows that are masked as a decoder of blocks meets them; for
        bidirectional models.
      block_length: length of those blocks, in tokens.
      mask_floor: the least share of a row (or block, of block-causal models) that is masked, 0
        to 1: t ~ U(mask_floor, 1). Above 0 the objective is no likelihood bound any more; it
        shows results whose operands are masked, too, more often.
    """

    share: float
    batch_size: int
    prompt_length: int
    gen_length: int
    strata: dict[str, float]
    steps: int = 0
    limit: int = 0
    short_share: float = 0.0
    block_share: float = 0.0
    block_length: int = 32
    mask_floor: float = 0.0


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with its own kinds of batches (easy problems first).

    Attributes:
      until: the step at which the phase ends (0: the end of the run).
      batches: the kinds that it draws from.
    """

    until: int
    batches: tuple[Shape, ...]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run; the field names are the YAML keys and, with dashes, the flags.

    Attributes:
      output: folder for checkpoints and metrics.
      seed: of weights, data and masks.
      steps: optimiser steps of the whole run; the schedule's length.
      model: `config.json` keys of a model to train from scratch; `model_type` is llada (without
        it), lladamoe, sdar or Fast_dLLM_Qwen.
      init_from: checkpoint or hub folder to fine-tune, instead of `model`.
      tokenizer: folder of tokenizer files for a model from scratch; "" is the task's own.
      task: "wordproblems", "dependency" or one of its tasks, or "" where `data` is given.
      phases: what the task's batches hold, and when.
      data: JSONL file of `prompt`/`response`, `messages` or `text` records.
      batch_size: rows of a batch (`data`).
      prompt_length: columns for prompts, in tokens (`data`).
      gen_length: columns for answers and their eos padding, in tokens (`data`).
      sequence_length: columns of a `text` row, in tokens; longer texts are cut up.
      too_long: what to do with a record that does not fit: "error" or "skip".
      optimizer: "adamw" or "muon".
      learning_rate: peak.
      adam_learning_rate: peak for what Muon does not handle (0: `learning_rate`).
      warmup_steps: steps of linear warm-up.
      final_learning_rate: where the cosine ends, as a share of the peak.
      weight_decay: decoupled, on the layers' matrices only.
      adam_b2: Adam's second decay rate.
      clip_norm: largest global norm of a gradient.
      balance: weight of the loss that balances the load of experts, per layer; 0 for none.
      ema_decay: decay per step of the averaged weights (0: no average).
      checkpoint_every: steps between checkpoints.
      keep: newest checkpoints to keep.
      log_every: steps between lines of metrics.
      decode: decode options that suit the model; an export holds them as decode.yaml.
    """

    output: str = ""
    seed: int = 0
    steps: int = 1000
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    init_from: str = ""
    tokenizer: str = ""
    task: str = ""
    phases: tuple[Phase, ...] = ()
    data: str = ""
    batch_size: int = 16
    prompt_length: int = 128
    gen_length: int = 128
    sequence_length: int = 256
    too_long: str = "error"
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    adam_learning_rate: float = 0.0
    warmup_steps: int = 100
    final_learning_rate: float = 0.0
    weight_decay: float = 0.05
    adam_b2: float = 0.99
    clip_norm: float = 1.0
    balance: float = 0.0
    ema_decay: float = 0.0
    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 50
    decode: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in (
            "steps",
            "batch_size",
            "prompt_length",
            "gen_length",
            "sequence_length",
            "checkpoint_every",
            "keep",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected >= 1")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected > 0")
        for name in ("ema_decay", "adam_b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected >= 0 and < 1")
        for name in (
            "warmup_steps",
            "weight_decay",
            "final_learning_rate",
            "adam_learning_rate",
            "balance",
            "seed",
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected >= 0")
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("too_long", TOO_LONG),
            ("task", ("", "wordproblems", *DEPENDENCY)),
        ):
            check_keys([getattr(self, name)], name, known, "value")
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
    result = kind(**out)
    if isinstance(result, Shape) and (
        min(result.batch_size, result.prompt_length, result.gen_length) < 1
        or not result.share > 0
        or not sum(result.strata.values()) > 0
        or result.block_length < 1
    ):
        raise UserError(f"{where}: sizes, shares and the sum of strata have to be positive")
    for name in ("short_share", "block_share") if isinstance(result, Shape) else ():
        if not 0 <= getattr(result, name) <= 1:
            raise UserError(f"{where}: {name} is {getattr(result, name)}, expected 0 to 1")
    if isinstance(result, Shape) and not 0 <= result.mask_floor < 1:
        raise UserError(f"{where}: mask_floor is {result.mask_floor}, expected >= 0 and < 1")
    return result


def make(values: Mapping[str, Any], where: str = "config") -> TrainConfig:
    """Build a config from plain values.

    Args:
      values: keys of `TrainConfig`.
      where: for messages, such as the file's name.

    Raises:
      UserError: unknown key, or a value that can't be used.
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
    """The keys and values of a YAML file, unchecked.

    Raises:
      UserError: unreadable, or not a mapping.
    """
    try:
        value = yaml.load(Path(path).read_text("utf-8"), _Yaml)  # noqa: S506 (a SafeLoader)
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UserError(f"{path}: can't be read ({reason})") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(e, 'problem', e)})") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values, such as `steps: 1000`")
    return value
