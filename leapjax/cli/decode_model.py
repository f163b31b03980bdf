"""What the parts of `leapjax decode` share: notes for the user, loading the model."""

import argparse
import functools

from leapjax.cli import common
from leapjax.errors import UserError
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
    lm.programs = args.brought
    if args.prompt and model is None:
        note(EMBEDDED)
    return lm


def brought(args: argparse.Namespace):
    """The `Programs` of --programs, or None; a run without mesh and rows takes theirs."""
    if args.no_compile and not args.programs:
        raise UserError("--no-compile goes with --programs DIR, where the programs come from")
    if not args.programs:
        return None
    from leapjax.serve.programs import Programs

    found = Programs(args.programs, compiles=not args.no_compile)
    if not found.headers:
        raise UserError(f"--programs {args.programs}: holds none; leapjax plan --save makes them")
    if args.mesh in (None, "auto"):
        args.mesh = found.agreed("mesh")
    args.batch_size = args.batch_size or found.agreed("rows")
    mesh = f"--mesh {args.mesh} " if args.mesh else ""
    note(f"{mesh}--batch-size {args.batch_size}, for the programs of {args.programs}")
    return found
