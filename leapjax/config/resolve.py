"""Resolve the options in force; the same rule for Python, commands, jobs, studies and integrations.

    flags or arguments  >  --config YAML  >  the checkpoint's decode.yaml  >  the task  >  default

A model that was trained on a canvas of 64 says so in its `decode.yaml`.

Canvas and block go together, because a checkpoint's block may not divide the user's canvas: a
level that sets one of the two discards both from the levels below. Flags and YAML count as one
level for this. The block of a block-causal model need not divide the canvas, so that they don't go
together there, and a task does not choose it.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from leapjax.config.check import shown
from leapjax.config.decode import COMMON, DecodeConfig, check_keys
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.options import ConfigFile, read_config
from leapjax.policies import PARAMETERS, POLICIES
from leapjax.policies.names import policy_of
from leapjax.policies.parameters import SCHEDULED

CHECKPOINT_FILE = "decode.yaml"
CANVAS = ("gen_length", "block_length")


def checkpoint_options(model: str | Path | None, shape: ModelConfig | None = None) -> ConfigFile:
    """The options of a model's `decode.yaml`.

    `model`: a folder, a hub id (which has no such file), or None for the embedded model; `shape`:
    the model's config, which the options must suit; None checks the options alone. Returns the
    file's options, empty without a file. Without one, the embedded model gets the canvas of its
    task. Raises UserError: the file is unusable, or sets a policy or a model (both are the user's
    choice).
    """
    from leapjax.loader import located

    path = located(model) / CHECKPOINT_FILE
    if not path.is_file():
        return ConfigFile(str(path), {} if model is not None else _task_canvas())
    file = read_config(path)
    for name in ("policy", *PARAMETERS):
        if name in file.options:
            raise UserError(
                f"{path}: {name} does not belong here; set only options that every policy reads"
            )
    for name in ("model", "share_prefix"):
        if getattr(file, name) is not None:
            raise UserError(f"{path}: {name} does not belong here")
    try:
        config = DecodeConfig(**file.options)
        if shape is not None:
            config.for_model(shape)
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
    model: Callable[[], ModelConfig] | None = None,
) -> DecodeConfig:
    """Merge all levels into the options in force.

    `given`: the flags or arguments that were set; `file`: the `--config` file, or None;
    `checkpoint`: from `checkpoint_options`, or None; `task`: a study's task, with `gen_length` and
    `block_length`, or None; `warn`: called with one line per option of the file that the given
    policy does not read, and for a block that is not the checkpoint's. `model`: reads the model's
    config; called once the options are known to be good in themselves. None leaves the model's own
    defaults open (`DecodeConfig.for_model`). Raises UserError: unknown name, unusable value, or a
    parameter that the policy does not read.
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
    canvas = {} if task is None else {name: getattr(task, name) for name in CANVAS}
    levels = (canvas, own, {**written, **given})
    merged = _merged(levels)
    with _origin(file, given, checkpoint, merged):
        config = DecodeConfig(**merged)
    if model is None:
        return config
    shape = model()
    if shape.block_causal:
        canvas.pop("block_length", None)
        merged = {n: v for level in levels for n, v in level.items()}
    with _origin(file, given, checkpoint, merged):
        return _for_model(DecodeConfig(**merged), shape, warn)


def for_checkpoint(
    given: Mapping[str, Any],
    file: ConfigFile | None,
    path: str | Path | None,
    task: Any = None,
    warn: Callable[[str], None] = lambda line: None,
    revision: str | None = None,
) -> DecodeConfig:
    """The options in force for a model that is not loaded yet."""
    from leapjax.loader import model_config

    own = checkpoint_options(path)
    return resolve(given, file, own, task, warn, model=lambda: model_config(path, revision))


@contextlib.contextmanager
def _origin(file, given, checkpoint, merged) -> Iterator[None]:
    """Begins errors with the file that the option's value comes from."""
    try:
        yield
    except UserError as e:
        # A message begins with the option's name.
        words = str(e).split()
        if file and words[0] not in given and not {*file.options}.isdisjoint(words):
            raise UserError(f"{file.path}: {e}") from e
        own = checkpoint.options if checkpoint else {}
        if words[0] in own and merged.get(words[0]) is own[words[0]]:
            raise UserError(f"{checkpoint.path}: {e}") from e
        raise


def _merged(levels: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The levels over each other, the lowest first; canvas and block go together."""
    merged: dict[str, Any] = {}
    for level in levels:
        if level.keys() & set(CANVAS):
            merged = {name: v for name, v in merged.items() if name not in CANVAS}
        merged |= level
    return merged


def _for_model(
    config: DecodeConfig, model: ModelConfig, warn: Callable[[str], None]
) -> DecodeConfig:
    made = config.for_model(model)
    if model.block_causal and made.block_length != model.block_length:
        warn(
            f"block_length is {made.block_length}; the model was trained with {model.block_length}"
        )
    return made


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
    config: DecodeConfig | None,
    options: Mapping[str, Any],
    checkpoint: ConfigFile | None,
    model: ModelConfig,
) -> DecodeConfig:
    """The options in force for a call from Python.

    `config`: complete options, which replace the checkpoint's; None uses the checkpoint's;
    `options`: keyword arguments, which override both; `checkpoint`: from `checkpoint_options`, or
    None.
    """
    if config is None:
        given = _cap_defaults(options, {})
        return resolve(given, checkpoint=checkpoint, warn=_warn, model=lambda: model)
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
        return config if config.model == model else _for_model(config, model, _warn)
    said = config.changed()
    given = _cap_defaults(options, said)
    return resolve(given, ConfigFile("config", said), warn=_warn, model=lambda: model)


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
