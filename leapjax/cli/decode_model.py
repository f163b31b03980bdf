"""What the parts of `leapjax decode` share: notes for the user, loading the model."""

import argparse
import functools

from leapjax.cli import common
from leapjax.terminal.examples import EMBEDDED

PROG = "leapjax decode"
note = functools.partial(common.note, PROG)
"""Takes one line for the user."""


def loaded(args: argparse.Namespace, config, model_of_file: str | None):
    """Load the model that the flags, or else the options file, name.

    `model_of_file`: what the options file names, or None. Raises UserError: no such model, or the
    devices here can't hold it.
    """
    records = len(args.prompt) if args.prompt else args.limit
    known = records and records * (args.num_samples or 1)
    model = args.model or model_of_file
    lm = common.load_model(args, PROG, model, config, requests=known)
    if args.prompt and model is None:
        note(EMBEDDED)
    return lm
