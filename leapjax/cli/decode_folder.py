"""`leapjax decode --output FOLDER`: a job that can be resumed, by one process or several."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback

from leapjax.cli.common import BAD, OK, complain
from leapjax.cli.decode_model import PROG, loaded, note
from leapjax.errors import UserError
from leapjax.failures import explained
from leapjax.wording import plural


def run(
    args: argparse.Namespace,
    config,
    model_of_file: str | None,
    processes: int,
) -> int:
    """Decode into a folder of shards, from the start or from where it was interrupted.

    Args:
      args: the command's.
      config: decode options.
      model_of_file: the model that the options file names.
      processes: that share the job.

    Returns:
      The exit status; with several processes it does not return.

    Raises:
      UserError: bad input or options.
    """
    from leapjax.jobs import job
    from leapjax.jobs.source import Input
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
    )

    def load():
        return loaded(args, config, model_of_file)

    if processes == 1:
        job.check(spec)  # before a large model is loaded
        lm = load()
        with Signals(_stopped, prog=PROG) as signals:
            return _run(args, lm, spec, None, signals)

    job.check_rereadable(Input(spec.input))
    # From here on, because neither joining nor loading may be interrupted half-way: the
    # signal is noted, and a process that takes too long to look is ended.
    with Signals(_stopped, prog=PROG) as signals:
        _leave(args, spec, load, signals)
    raise AssertionError


def _leave(args, spec, load, signals) -> None:
    """Run one of several processes, and end it."""
    from leapjax.jobs import job
    from leapjax.jobs.peers import PeerEnded, join

    peers = join(args.coordinator, args.num_processes, args.process_id, note)
    status, why = 1, "failed"
    try:
        job.check(spec, peers)
        status = _run(args, load(), spec, peers, signals)
        if status != OK:
            why = f"stopped by {signal.Signals(status - 128).name}"
    except PeerEnded as e:
        if (number := signals.requested()) is not None:
            signals.answered.set()
            _stopped(number)
            status = 128 + number
        else:
            complain(PROG, e)
            status = e.status
    except UserError as e:
        complain(PROG, e)
        status, why = BAD, " ".join(str(e).split())
    except BaseException as e:
        why = type(e).__name__
        if line := explained(e):
            complain(PROG, line)
            status = BAD
        else:
            traceback.print_exc()
    peers.leave(status, why)


def _run(args, lm, spec, peers, signals) -> int:
    from leapjax.jobs import display, job
    from leapjax.jobs.loop import Stopped

    try:
        result = job.run(
            lm,
            spec,
            peers=peers,
            show=lambda total: display.shown(total, args.progress),
            stop=signals.requested,
            note=note,
        )
    except Stopped as e:
        signals.answered.set()
        _stopped(e.number)
        return 128 + e.number
    if peers is not None and peers.index:
        return OK  # process 0 says it all
    errors = result.content["errors"]
    if errors:
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
