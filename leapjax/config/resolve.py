"""Resolve the options in force; the same rule for Python, commands, jobs, studies and integrations.

    flags or arguments  >  --config YAML  >  the checkpoint's decode.yaml  >  the task  >  default

A model that was trained on a canvas of 64 says so in its `decode.yaml`.

Canvas and block go together, because a checkpoint's block may not divide the user's canvas: a
level that sets one of the two discards both from the levels below. Flags and YAML count as one
level for this.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leapjax.config.check import shown
from leapjax.config.decode import COMMON, DecodeConfig, check_keys
from leapjax.errors import UserError
from leapjax.options import ConfigFile, read_config
from leapjax.policies import PARAMETERS, POLICIES
from leapjax.policies.names import policy_of
from leapjax.policies.parameters import SCHEDULED

CHECKPOINT_FILE = "decode.yaml"
CANVAS = ("gen_length", "block_length")


def checkpoint_options(model: str | Path | None) -> ConfigFile:
    """The options of a model's `decode.yaml`.

    Args:
      model: a folder, a hub id (which has no such file), or None for the embedded model.

    Returns:
      The file's options, empty without a file. Without one, the embedded model gets the canvas of
      its task.

    Raises:
      UserError: the file is unusable, or sets a policy or a model (both are the user's choice).
    """
    from leapjax.loader import embedded_path

    path = (embedded_path() if model is None else Path(model)) / CHECKPOINT_FILE
    if not path.is_file():
        return ConfigFile(str(path), {} if model is not None else _task_canvas())
    file = read_config(path)
    for name in ("policy", *PARAMETERS):
        if name in file.options:
            raise UserError(
                f"{path}: {name} does not belong here; set only options that every policy reads"
            )
    if file.model is not None:
        raise UserError(f"{path}: model does not belong here")
    try:
        DecodeConfig(**file.options)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    return file


def _task_canvas() -> dict[str, Any]:
    from leapjax import tasks

    task = tasks.get("wordproblems")
    return {name: getattr(task, name) for name in CANVAS}


def resolve(
    given: Mapping[str, Any],
    file: ConfigFile | None = None,
    checkpoint: ConfigFile | None = None,
    task: Any = None,
    warn: Callable[[str], None] = lambda line: None,
) -> DecodeConfig:
    """Merge all levels into the options in force.

    Args:
      given: the flags or arguments that were set.
      file: the `--config` file, or None.
      checkpoint: from `checkpoint_options`, or None.
      task: a study's task, with `gen_length` and `block_length`, or None.
      warn: called with one line per option of the file that the given policy does not read.

    Raises:
      UserError: unknown name, unusable value, or a parameter that the policy does not read.
    """
    check_keys(given, "options")
    written = dict(file.options) if file else {}
    if file and "policy" in given:
        for name in _unread(given, written):
            warn(
                f"{file.path}: {name} is ignored, policy {given['policy']} does not read it "
                f"(the file is for {written.get('policy', COMMON['policy'].default)})"
            )
            del written[name]
    own = dict(checkpoint.options) if checkpoint else {}
    merged: dict[str, Any] = {}
    canvas = {} if task is None else {name: getattr(task, name) for name in CANVAS}
    for level in (canvas, own, {**written, **given}):
        if level.keys() & set(CANVAS):
            merged = {name: v for name, v in merged.items() if name not in CANVAS}
        merged |= level
    try:
        return DecodeConfig(**merged)
    except UserError as e:
        # A message begins with the option's name; prepend the file that its value comes from.
        words = str(e).split()
        if file and words[0] not in given and not written.keys().isdisjoint(words):
            raise UserError(f"{file.path}: {e}") from e
        if checkpoint and words[0] in own and merged.get(words[0]) is own[words[0]]:
            raise UserError(f"{checkpoint.path}: {e}") from e
        raise


def _unread(given: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Options of a file that its own policy reads and the given policy does not."""
    wanted = policy_of(given["policy"]) if isinstance(given["policy"], str) else None
    files = written.get("policy", COMMON["policy"].default)
    theirs = policy_of(files) if isinstance(files, str) else None
    if wanted is None or theirs is None or wanted == theirs:
        return []
    name, tokens = wanted
    # A name such as `greedy` fixes the tokens per step, and with them steps and schedule.
    fixed = [p.name for p in SCHEDULED] if tokens else []
    reads = [n for n in POLICIES[name].reads if n not in fixed]
    if name == theirs[0]:
        reads += [n for n in PARAMETERS if n not in fixed]  # same policy: only the schedule differs
    return [n for n in PARAMETERS if n in written and n not in given and n not in reads]


def from_python(
    config: DecodeConfig | None, options: Mapping[str, Any], checkpoint: ConfigFile | None
) -> DecodeConfig:
    """The options in force for a call from Python.

    Args:
      config: complete options, which replace the checkpoint's; None uses the checkpoint's.
      options: keyword arguments, which override both.
      checkpoint: from `checkpoint_options`, or None.

    Raises:
      UserError: as `resolve`, or `config` is not a DecodeConfig.
    """
    if config is None:
        return resolve(_cap_defaults(options, {}), checkpoint=checkpoint, warn=_warn)
    if isinstance(config, Mapping):
        check_keys(config, "config")
        said = ", ".join(f"{name}={shown(value)}" for name, value in config.items())
        raise UserError(
            f"config is a dict; give its options by name ({said}), or as "
            f"leapjax.DecodeConfig({said})"
        )
    if not isinstance(config, DecodeConfig):
        raise UserError(f"config is {shown(config)}; expected a leapjax.DecodeConfig")
    if not options:
        return config
    said = config.changed()
    return resolve(_cap_defaults(options, said), ConfigFile("config", said), warn=_warn)


def _cap_defaults(options: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords, plus unset parameters lowered to their upper bound (`at_most`).

    So `threshold=0.5` alone lowers `relaxed_threshold` from its default 0.75. Command lines and
    records are refused instead.
    """
    out = dict(options)
    policy = options.get("policy", said.get("policy", COMMON["policy"].default))
    found = policy_of(policy) if isinstance(policy, str) else None
    for p in POLICIES[found[0]].parameters if found else ():
        upper = options.get(p.at_most or "")
        if p.default is None or isinstance(upper, bool) or not isinstance(upper, int | float):
            continue
        if p.name not in out and p.name not in said and 0 <= upper < p.default:
            out[p.name] = upper
            _warn(f"{p.name} is lowered from its default {p.default} to {upper}, as {p.at_most} is")
    return out


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=6)
