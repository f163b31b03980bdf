"""Decode options that a checkpoint brings along: its optional `decode.yaml`.

    flag  >  --config  >  the checkpoint's decode.yaml  >  default

A model that was trained on a canvas of 64 says so there, and nobody has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leapjax.config import POLICY_OPTIONS, DecodeConfig
from leapjax.errors import UserError

FILE = "decode.yaml"


def model_options(model: str | Path | None) -> dict[str, Any]:
    """The options of a model's `decode.yaml`.

    Args:
      model: a folder; None is the embedded model, a hub id has none.

    Returns:
      Option names and values; empty without such a file. The embedded model without one
      gets the canvas of its task.

    Raises:
      UserError: the file is unusable, or sets a policy, which is the user's choice.
    """
    from leapjax.lm import embedded_path
    from leapjax.options import read_config

    folder = embedded_path() if model is None else Path(model)
    file = folder / FILE
    if not file.is_file():
        if model is not None:
            return {}
        from leapjax import tasks

        task = tasks.get("wordproblems")
        return {"gen_length": task.gen_length, "block_length": task.block_length}
    read = read_config(file)
    for name in ("policy", *POLICY_OPTIONS):
        if name in read.options:
            raise UserError(f"{file}: {name} does not belong here; only what every policy reads")
    if read.model is not None:
        raise UserError(f"{file}: model does not belong here")
    return dict(read.options)


def job_options(
    model: str | Path | None,
    given: Mapping[str, Any],
    file=None,
    warn: Callable[[str], None] = lambda line: None,
) -> DecodeConfig:
    """A job's options: those given, then the file's, then the checkpoint's, then the defaults.

    Args:
      model: as in `model_options`.
      given: options by name.
      file: a `leapjax.options.ConfigFile`, or None.
      warn: see `leapjax.options.decode_config`.

    Raises:
      UserError: as `model_options` and `leapjax.options.decode_config`.
    """
    from leapjax.options import decode_config

    said = given.keys() | (file.options.keys() if file else set())
    own = {k: v for k, v in model_options(model).items() if k not in said}
    if said & {"gen_length", "block_length"}:
        # Canvas and block go together: half of the checkpoint's pair may not fit the user's.
        own.pop("gen_length", None)
        own.pop("block_length", None)
    return decode_config({**own, **given}, file, warn)
