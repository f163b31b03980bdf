"""The model of `leapjax decode`, on the devices that fit it."""

from __future__ import annotations

import argparse
import sys

from leapjax.cli.common import load_model
from leapjax.terminal.examples import EMBEDDED


def loaded(args: argparse.Namespace, config, model_of_file: str | None):
    """Load the model that the flags, or else the options file, name.

    Args:
      args: of `leapjax decode`.
      config: the job's decode options.
      model_of_file: what the options file names, or None.

    Returns:
      An `LM`.

    Raises:
      UserError: no such model, or the devices here can't hold it.
    """
    records = len(args.prompt) if args.prompt else args.limit
    known = records and records * (args.num_samples or 1)
    model = args.model or model_of_file
    lm = load_model(args, "leapjax decode", model, config, requests=known)
    if args.prompt and model is None:
        print(f"leapjax decode: note: {EMBEDDED}", file=sys.stderr)
    return lm
