"""`leapjax decode` without a prompt, or with `--chat`."""

import argparse
import io
import sys

from leapjax.config import DecodeConfig
from leapjax.errors import UserError

# What belongs to records, not to what is shown here.
_RECORDS = (
    "prompt",
    "input",
    "output",
    "json",
    "details",
    "fields",
    "num_samples",
    "resume",
    "raw",
    "stop",
    "max_errors",
    "overwrite",
    "shard_size",
    "batch_size",
    "share_prefix",
    "programs",
    "no_compile",
    "chip_hour",
)


def run(args: argparse.Namespace, config: DecodeConfig, model: str | None) -> int:
    """Show sample problems, or hold a conversation.

    `model`: path or hub id; None is the embedded model. Raises UserError: no such model, or an
    option that is for records.
    """
    for name in (*_RECORDS, *(("limit",) if args.chat else ())):
        if name == "overwrite" and args.trace:
            continue  # of the trace
        if getattr(args, name):
            flag = "--" + name.replace("_", "-")
            with_ = "together with --chat" if args.chat else "without --prompt or --input"
            raise UserError(f"{flag} does not go {with_}; leave one of them out")
    from leapjax.cli import common
    from leapjax.cli.decode_model import PROG, note
    from leapjax.terminal import chat, examples, samples

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    known = 1 if args.chat else args.limit or samples.COUNT
    lm = common.load_model(args, PROG, model, config, requests=known)
    if args.chat:
        if model is None:
            note(f"{examples.EMBEDDED}; /reset between two questions, it knows no conversations")
        chat.run(lm, config, sys.stdin, sys.stdout, args.system)
    else:
        live, count = args.progress is not False, args.limit or samples.COUNT
        samples.run(lm, config, sys.stdout, live, count)
        if args.trace:
            from leapjax.trace import record

            record.write_samples(args, lm, config, samples.records(lm, config.seed, count), note)
    return 0
