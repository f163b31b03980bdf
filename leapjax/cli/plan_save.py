"""`leapjax plan --save DIR`: programs that `leapjax decode --programs DIR` need not compile."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from leapjax.cli import common
from leapjax.cli.common import OK
from leapjax.errors import UserError
from leapjax.progress import busy

PROG = "leapjax plan"
UNTESTED = "a program for a TPU that is not attached: loading it on a chip is untested"


def options(args: argparse.Namespace, model: str | None):
    """The options of the run that the programs are for, as `leapjax decode` resolves them."""
    from leapjax.config.resolve import for_checkpoint
    from leapjax.options import read_config, set_flags

    file = read_config(args.config) if args.config else None
    flags = set_flags(args, ("policy", "gen_length", "block_length", "cache"))
    note = functools.partial(common.note, PROG)
    return for_checkpoint(flags, file, model, warn=note)


def check(args: argparse.Namespace) -> None:
    """Refuse what does not go with --save: an option that decode lacks, or no checkpoint."""
    from leapjax.planning import models

    if args.refresh_group:
        raise UserError("--refresh-group does not go with --save; a run takes the engine's own")
    if args.sweep:
        raise UserError("--save does not go with --sweep; save for the --topology it recommends")
    if args.topology and args.model in (None, *models.PRESETS):
        raise UserError(
            "--save needs --model FOLDER, a checkpoint: its tokenizer and dtypes are part of a "
            "program"
        )


def here(args: argparse.Namespace) -> int:
    """Save programs for the devices of this machine."""
    import leapjax
    from leapjax.fit import wanted
    from leapjax.planning import saved

    config = options(args, args.model)
    forms = args.quantize.split(",") if args.quantize else ["none"]
    if len(forms) > 1:
        raise UserError("--save takes one form of the weights; name one with --quantize")
    lm = leapjax.load(
        args.model,
        dtype=args.dtype,
        quantize=None if forms == ["none"] else forms[0],
        mesh=wanted(args.mesh, config, args.batch),
    )
    with busy(f"compiling for {len(lm.replicas)} replicas"):
        files, rows = saved.save_here(lm, config, args.prompt_length, args.batch, args.save)
    mesh = f"--mesh {lm.mesh} " if lm.mesh else ""
    tell(args, files, f"{mesh}--batch-size {rows}")
    return OK


def for_slice(args: argparse.Namespace, work, plan: dict) -> None:
    """Save programs for the slice of a plan."""
    from leapjax.cli.plan_table import command
    from leapjax.planning import chips, isolated, saved
    from leapjax.sharding import parse

    where, mesh = chips.parse(plan["topology"]), parse(plan["mesh"])
    what = (where, mesh, work, plan["rows_a_replica"], plan["quantize"], args.model, args.save)
    with busy(f"compiling for {where} with --mesh {mesh}, every replica"):
        files = isolated.call(saved.save_for, *what, timeout_s=args.compile_timeout * mesh.data)
    tell(args, files, command(plan))
    print(f"Not tested: {UNTESTED}.", flush=True)


def tell(args: argparse.Namespace, files: Sequence[tuple[str, int]], flags: str) -> None:
    """Print what was saved, and the options of decode that take it."""
    from leapjax.serve.sizes import bucket

    for name, size in files:
        print(f"saved: {args.save}/{name}, {common.human_bytes(size)}", flush=True)
    print(
        f"Prompts up to {bucket(args.prompt_length)} tokens. Decode with {flags} "
        f"--programs {args.save}",
        flush=True,
    )
