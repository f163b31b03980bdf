"""`leapjax decode --output FOLDER`: a job that can be resumed, and that any processes may join."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from leapjax.cli.common import OK
from leapjax.cli.decode_model import PROG, loaded, note
from leapjax.errors import UserError
from leapjax.wording import plural


def run(args: argparse.Namespace, config, model_of_file: str | None) -> int:
    """Decode into a folder of shards, from the start or from where it is.

    Args:
      args: the command's.
      config: decode options.
      model_of_file: the model that the options file names.

    Returns:
      The exit status.

    Raises:
      UserError: bad input or options.
    """
    from leapjax.jobs import display, job
    from leapjax.jobs.loop import Stopped
    from leapjax.records import check_fields
    from leapjax.signals import Signals

    if args.prompt:
        raise UserError("an --output folder goes with --input; name a file that ends in .jsonl")
    spec = job.JobSpec(
        input=args.input,
        output=args.output,
        options=config,
        resume=args.resume,
        overwrite=args.overwrite,
        max_errors=args.max_errors,
        num_samples=args.num_samples,
        details=args.details,
        fields=check_fields(args.fields, args.details),
        raw=args.raw,
        stop=tuple(args.stop or ()),
        limit=args.limit,
        batch_size=args.batch_size,
        share_prefix=args.share_prefix,
        shard_size=args.shard_size,
        save_seconds=args.save_every,
        chip_hour=args.chip_hour,
    )

    job.check(spec)  # before a large model is loaded
    lm = loaded(args, config, model_of_file)
    with Signals(_stopped, prog=PROG) as signals:
        try:
            result = job.run(
                lm,
                spec,
                show=lambda total: display.shown(total, args.progress),
                stop=signals.requested,
                note=note,
            )
        except Stopped as e:
            signals.answered.set()
            _stopped(e.number)
            return 128 + e.number
    if errors := result.content["errors"]:
        note(f"{plural(errors, 'bad record')} set aside in {args.output}/errors.jsonl")
    if not result.ran:
        note(f"{args.output} was complete already")
        return OK
    print(result.summary.line(), file=sys.stderr)
    return OK


def _stopped(number: int) -> None:
    """The last words of a job that a signal ends, one line written at once."""
    name = signal.Signals(number).name
    line = f"leapjax decode: stopped by {name}; run the same command with --resume to go on\n"
    os.write(2, line.encode())
