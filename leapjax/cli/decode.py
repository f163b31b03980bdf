"""`leapjax decode`: complete prompts, from the command line or a JSONL file."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from leapjax.cli.common import OK, command
from leapjax.cli.decode_arguments import DESCRIPTION, EPILOG, add_arguments
from leapjax.cli.decode_model import loaded, note
from leapjax.errors import UserError
from leapjax.wording import plural


def run(args: argparse.Namespace) -> int:
    """Carry the command out.

    Args:
      args: as `add_arguments` declares them.

    Returns:
      The exit status.

    Raises:
      UserError: bad input or options.
    """
    from leapjax.cli import decode_folder, decode_model
    from leapjax.compilation import enable_cache
    from leapjax.config.resolve import for_checkpoint
    from leapjax.loader import EMBEDDED
    from leapjax.options import read_config, set_flags
    from leapjax.terminal import show

    file = read_config(args.config) if args.config else None
    model = args.model or (file.model if file else None)
    config = for_checkpoint(set_flags(args), file, model, warn=note)
    if args.chat and args.output:
        raise UserError("--output does not go together with --chat; leave one of them out")
    if args.output == "-":  # records on stdout
        args.output, args.json = None, True
    if args.trace_policies and not args.trace:
        raise UserError("--trace-policies goes with --trace PATH")
    if args.trace:
        _check_trace(args, config)
    if args.system is not None and not args.chat:
        raise UserError("--system goes with --chat; in --input files, messages can begin with it")
    enable_cache()
    samples = model in (None, *EMBEDDED) and not (args.output or args.json)
    if args.chat or (samples and not (args.prompt or args.input)):
        return show.run(args, config, model)
    if args.share_prefix is None:
        of_file = file.share_prefix if file else None
        args.share_prefix = "auto" if of_file is None else of_file
    if args.prompt and args.input:
        raise UserError("--prompt and --input are both given; choose one")
    if not args.prompt and not args.input:
        raise UserError("no prompt; give --prompt TEXT or --input FILE")
    if args.prompt and not all(args.prompt):
        raise UserError("--prompt is empty; give some text")
    if (args.num_samples or 1) > 1 and config.temperature == 0:
        note("temperature is 0, so samples of a prompt are alike unless its record sets one")
    args.brought = decode_model.brought(args)
    if args.output and not args.output.endswith(".jsonl"):
        return decode_folder.run(args, config, file.model if file else None)
    if args.resume:
        raise UserError("--resume goes with an --output folder; a file is written in one go")
    if args.chip_hour is not None:
        raise UserError(
            "--chip-hour goes with an --output folder, whose summary.json has the price"
        )
    return _decode(args, config, file.model if file else None)


def _check_trace(args: argparse.Namespace, config) -> None:
    """Refuse a trace that can't be made, before a model is loaded."""
    from leapjax.trace import check_path, collect

    if args.chat:
        raise UserError("--trace does not go together with --chat; leave one of them out")
    if args.output and not args.output.endswith(".jsonl"):
        raise UserError("--trace is for a few prompts; leave it out of an --output folder's job")
    check_path(args.trace, args.overwrite)
    for name in collect.names(args.trace_policies, config):
        collect.config_for(name, config)


def _decode(args, config, model_of_file: str | None) -> int:
    """Decode to stdout or into one file."""
    import itertools

    from leapjax import outputs
    from leapjax.arguments import sharing
    from leapjax.jobs import display
    from leapjax.jobs.loop import Loop
    from leapjax.jobs.source import Input, from_prompts
    from leapjax.records import Intake, check_fields
    from leapjax.trace import record

    fields = check_fields(args.fields, args.details)
    source = Input(args.input) if args.input else None
    if args.output:
        _not_the_input(args)
        sink = outputs.OutputFile(
            args.output, details=args.details, overwrite=args.overwrite, fields=fields
        )
    elif args.json or args.input:
        sink = outputs.LineSink(_utf8(sys.stdout), args.details, _report_bad, fields)
    elif args.details or fields:
        flag = "--details" if args.details else "--fields"
        raise UserError(f"{flag} is for records; add --json or --output FILE")
    else:
        several = len(args.prompt) > 1 and args.num_samples is None
        sink = TextSink(_utf8(sys.stdout), _texts(args.prompt) if several else ())

    lm = loaded(args, config, model_of_file)
    sharing(args.share_prefix, lm.config, config)
    shape = {"raw": args.raw, "stop": args.stop or (), "samples": args.num_samples}
    noted = record.Intake(config, lm.config, lm.codec, **shape) if args.trace else None
    watched = record.Sink(sink)
    intake = noted or Intake(config, lm.config, lm.codec, **shape)
    wanted = args.progress
    if wanted is None and (args.prompt or not args.output):
        wanted = sys.stderr.isatty() and not args.prompt
    with contextlib.ExitStack() as stack:
        if isinstance(sink, outputs.OutputFile):
            stack.enter_context(sink)  # published when the stack closes without an error
        total = len(args.prompt or ()) if source is None else source.scan().lines
        if total is not None:
            total = min(total, args.limit or total)
        if args.trace:
            record.check(args, config, total)
        seen = stack.enter_context(display.shown(total, wanted))
        loop = Loop(
            lm,
            intake,
            watched if noted else sink,
            max_errors=args.max_errors,
            batch_size=args.batch_size,
            share_prefix=args.share_prefix,
            count=None if total is None else total * (args.num_samples or 1),
            waits=source is not None and source.is_stream,
            seen=seen,
        )
        items = source.items() if source is not None else from_prompts(args.prompt)
        summary = loop.run(itertools.islice(items, args.limit))
        if noted:  # before the output is published: a trace that fails leaves neither
            record.write(args, lm, noted, watched, note)
    if errors := loop.progress.errors:
        place = f" in {sink.errors_path}" if isinstance(sink, outputs.OutputFile) else ""
        note(f"{plural(errors, 'bad record')} set aside{place}")
    print(summary.line(), file=sys.stderr)
    return OK


def _texts(prompts: Sequence[str | dict[str, str]]) -> list[str]:
    """What was typed: a prompt, or what is to be filled in."""
    return [p if isinstance(p, str) else p["infill"] for p in prompts]


class TextSink:
    """Answers as text; on a terminal, with what each took.

    Args:
      stream: where to.
      prompts: shown above the answers on a terminal; none to leave them out.
    """

    def __init__(self, stream: IO[str], prompts: Sequence[str] = ()):
        self._stream, self._prompts, self._count = stream, prompts, 0
        self._terminal = stream.isatty()

    def write(self, completion) -> None:
        """Show an answer."""
        number, self._count = self._count, self._count + 1
        if not self._terminal:
            print(completion.text, file=self._stream, flush=True)
            return
        if self._prompts:
            print(f"> {self._prompts[number]}", file=self._stream)
        decided = sum(step >= 0 for step in completion.commit_step)
        print(completion.text, file=self._stream)
        cost = f"{plural(completion.steps, 'step')} for {plural(decided, 'token')}"
        print(f"[{cost}, {completion.finish_reason}]\n", file=self._stream, flush=True)

    def keep_bad(self, record) -> None:
        """Name a bad record."""
        _report_bad(record)

    def settle(self, item) -> None:
        """Nothing to do: what is written is out."""


def _not_the_input(args: argparse.Namespace) -> None:
    if args.input and args.input != "-" and Path(args.output).exists():
        if Path(args.output).samefile(args.input):
            raise UserError(f"output {args.output}: is the input; choose another name")


def _utf8(stream: IO[str]) -> IO[str]:
    """Answers are UTF-8 whatever the locale says; a pipe carries bytes."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="replace")
    return stream


def _report_bad(record: dict) -> None:
    note(f"line {record['line']} left out: {record['error']}")


main = command("decode", add_arguments, run, DESCRIPTION, EPILOG)
