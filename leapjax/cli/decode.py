"""`leapjax decode`: complete prompts, from the command line or a JSONL file."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from leapjax.cli.common import MESH_HELP, OK, Parser, run_main
from leapjax.cli.decode_model import loaded
from leapjax.errors import UserError

HELP = "complete prompts, from the command line or a file"

DESCRIPTION = """\
Complete prompts with a masked diffusion language model.

A canvas of masked tokens behind each prompt is filled in over several passes; the
policy chooses which positions commit in each. Answers go to stdout, or as JSON
records to --output; everything else goes to stderr.
"""

EPILOG = """\
examples:
  # One question, the model that comes with leapjax
  leapjax decode --prompt "A box holds 12 eggs. How many eggs are in 3 boxes?"

  # A model of your own (converted, a hub folder, or a hub id), greedy for comparison
  leapjax decode --model checkpoints/llada-8b --policy low_confidence --prompt "Why?"

  # A file of records, with the options of a config file and one of them changed
  leapjax decode --model checkpoints/llada-8b --config configs/llada-8b-instruct.yaml \\
      --threshold 0.95 --input prompts.jsonl --output answers.jsonl

  # Millions of records: a folder of shards; after a kill the same command goes on
  leapjax decode --model checkpoints/llada-8b --input gs://bucket/prompts.jsonl \\
      --output gs://bucket/answers --max-errors 100 --resume

  # Two processes, each with devices of its own, share the job (the other has --process-id 1)
  leapjax decode --model checkpoints/llada-8b --input prompts.jsonl --output answers \\
      --resume --coordinator localhost:8476 --num-processes 2 --process-id 0

  # In a pipe: records in, records out
  cat prompts.jsonl | leapjax decode --input - | jq .text

  # Which token was committed when and why: a page with a slider, beside greedy
  leapjax decode --prompt "A box holds 12 eggs. How many eggs are in 3 boxes?" --trace eggs.html

  # Five samples of one prompt
  leapjax decode --prompt "Name a colour." --temperature 0.7 --num-samples 5 --json

records:
  Each input line is an object with one of prompt, messages, prompt_ids, infill_ids, and
  if wanted id, options (for this record only), stop. Other keys come back as metadata.

the summary on stderr:
  tokens/s              tokens before the first eos, per second, compiling included
  tokens per step       the same tokens, per step of a row
  passes                steps, as a share of the passes that one token a step would have
                        taken for the same positions (those filled in by early stop, which
                        no pass decided, are not counted)

exit status: 0 done, 2 bad input or options, 130 interrupted, 143 ended by SIGTERM.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
      parser: of this command.
    """
    from leapjax.config import QUANTIZATIONS
    from leapjax.options import add_option_flags

    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="PATH_OR_ID", help="checkpoint (default: the one in the package)")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="compute type (default: float32 on CPU, else bfloat16)",
    )
    add("--quantize", choices=QUANTIZATIONS, help="round the matrices to 8 bits after loading")
    add("--mesh", metavar="AXES", help=MESH_HELP)
    add("--batch-size", type=_positive, metavar="N", help="rows decoded at once")

    add = parser.add_argument_group("prompts").add_argument
    add("--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times")
    add("--chat", action="store_true", help="hold a conversation; /quit or end of input ends it")
    add("--input", metavar="PATH", help="JSONL records, maybe .gz or a URL; - is stdin")
    add(
        "--raw",
        action="store_true",
        help="no chat template for prompts; control tokens in them are parsed",
    )
    add(
        "--limit",
        type=_positive,
        metavar="N",
        help="only the first N records; without prompts, N sample problems (default: 4)",
    )
    add(
        "--num-samples",
        type=_positive,
        metavar="N",
        help="answers per prompt, numbered by `sample` (with --temperature)",
    )
    add(
        "--stop",
        action="append",
        metavar="TEXT",
        help="cut answers before this text; may be given several times",
    )
    add(
        "--max-errors",
        type=_natural,
        default=0,
        metavar="N",
        help="set up to N bad records aside, in *.errors.jsonl (default: 0)",
    )

    add = parser.add_argument_group("output").add_argument
    add(
        "--output",
        metavar="PATH",
        help="write records: to a file if it ends in .jsonl, when all are done; else to a folder "
        "of shards, which can be resumed",
    )
    add("--resume", action="store_true", help="go on with the interrupted job in that folder")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    add(
        "--shard-size",
        type=_positive,
        metavar="N",
        help="records per shard of a folder (default: 1000)",
    )
    add(
        "--save-every",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="work that a kill may cost, with a folder (default: 30)",
    )
    add(
        "--json",
        action="store_true",
        help="records instead of text on stdout (always so with --input)",
    )
    add(
        "--details",
        action="store_true",
        help="records say why and how surely each position was committed",
    )
    add(
        "--trace",
        metavar="PATH",
        help="show which token was committed when and why: a page (.html) or a picture for "
        "slides (.gif, .png); decodes once more for each of the other policies",
    )
    add(
        "--trace-policies",
        type=_names,
        metavar="NAME,…",
        help="shown beside each other, names as in leapjax evaluate (default: the chosen policy "
        "and greedy, which is always among them)",
    )
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="progress bar on stderr (default: on a terminal; into a file or folder, elsewhere, "
        "a line every minute)",
    )

    add = parser.add_argument_group(
        "several processes",
        "that share an --output folder's job; found without flags on TPU slices, Kubernetes, "
        "Slurm, Open MPI (docs/multihost.md)",
    ).add_argument
    add("--coordinator", metavar="HOST:PORT", help="of process 0; the port must be free there")
    add(
        "--num-processes",
        type=_positive,
        metavar="N",
        help="how many; 1 alone: don't look for others",
    )
    add("--process-id", type=_natural, metavar="P", help="of this one, 0 to N - 1")

    parser.add_argument_group("options file").add_argument(
        "--config", metavar="FILE", help="YAML of the options below, flags win over it"
    )
    add_option_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Carry the command out.

    Args:
      args: as `add_arguments` declares them.

    Returns:
      The exit status.

    Raises:
      UserError: bad input or options.
    """
    from leapjax.cli import decode_folder
    from leapjax.compilation import enable_cache
    from leapjax.evaluation.defaults import job_options
    from leapjax.jobs.peers import count_of
    from leapjax.options import read_config, set_flags
    from leapjax.terminal import show

    file = read_config(args.config) if args.config else None
    model = args.model or (file.model if file else None)
    config = job_options(model, set_flags(args), file, _note)
    if args.trace_policies and not args.trace:
        raise UserError("--trace-policies goes with --trace PATH")
    if args.trace:
        _check_trace(args, config)
    enable_cache()
    flags = (args.coordinator, args.num_processes, args.process_id)
    if args.chat or not (args.prompt or args.input or args.output or args.json or model):
        if flags != (None, None, None) and count_of(*flags) > 1:
            raise UserError("several processes decode into an --output folder only; name one")
        return show.run(args, config, model)
    if args.prompt and args.input:
        raise UserError("--prompt and --input are both given; choose one")
    if not args.prompt and not args.input:
        raise UserError("no prompt; give --prompt TEXT or --input FILE")
    if args.prompt and not all(args.prompt):
        raise UserError("--prompt is empty; give some text")
    if (args.num_samples or 1) > 1 and config.temperature == 0:
        _note("temperature is 0, so samples of a prompt are alike unless its record sets one")
    several = count_of(*flags, _note)
    if args.output and not args.output.endswith(".jsonl"):
        return decode_folder.run(args, config, file.model if file else None, several, _note)
    if several > 1:
        raise UserError(
            f"{several} processes decode into an --output folder only; name one, or give "
            "--num-processes 1"
        )
    if args.resume:
        raise UserError("--resume goes with an --output folder; a file is written in one go")
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

    from leapjax.jobs import display, sinks
    from leapjax.jobs.loop import Loop
    from leapjax.jobs.source import Input, from_prompts
    from leapjax.records import Intake
    from leapjax.trace import record

    source = Input(args.input) if args.input else None
    if args.output:
        _not_the_input(args)
        sink = sinks.OutputFile(args.output, details=args.details, overwrite=args.overwrite)
    elif args.json or args.input:
        sink = sinks.LineSink(_utf8(sys.stdout), args.details, _report_bad)
    elif args.details:
        raise UserError("--details is for records; add --json or --output FILE")
    else:
        several = len(args.prompt) > 1 and args.num_samples is None
        sink = TextSink(_utf8(sys.stdout), args.prompt if several else ())

    lm = loaded(args, config, model_of_file)
    shape = {"raw": args.raw, "stop": args.stop or (), "samples": args.num_samples}
    noted = record.Intake(config, lm.config, lm.codec, **shape) if args.trace else None
    watched = record.Sink(sink)
    intake = noted or Intake(config, lm.config, lm.codec, **shape)
    wanted = args.progress
    if wanted is None and (args.prompt or not args.output):
        wanted = sys.stderr.isatty() and not args.prompt
    with contextlib.ExitStack() as stack:
        if isinstance(sink, sinks.OutputFile):
            stack.enter_context(sink)  # published when the stack closes without an error
        total = len(args.prompt or ())
        if source is not None:
            total = source.scan().lines if wanted is not False else None
        if total is not None:
            total = min(total, args.limit or total)
        if args.trace:
            known = total
            if known is None and source is not None:
                known = source.scan().lines
                known = min(known, args.limit or known) if known is not None else None
            record.check(args, config, known)
        seen = stack.enter_context(display.shown(total, wanted))
        loop = Loop(
            lm,
            intake,
            watched if noted else sink,
            max_errors=args.max_errors,
            batch_size=args.batch_size,
            seen=seen,
        )
        items = source.items() if source is not None else from_prompts(args.prompt)
        summary = loop.run(itertools.islice(items, args.limit))
        if noted:  # before the output is published: a trace that fails leaves neither
            record.write(args, lm, noted, watched, _note)
    if errors := loop.progress.errors:
        place = f" in {sink.errors_path}" if isinstance(sink, sinks.OutputFile) else ""
        _note(f"{errors} bad record{'s' * (errors != 1)} set aside{place}")
    print(summary.line(), file=sys.stderr)
    return OK


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
        print(
            f"[{completion.steps} steps for {decided} tokens, {completion.finish_reason}]\n",
            file=self._stream,
            flush=True,
        )

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


def _note(line: str) -> None:
    print(f"leapjax decode: note: {line}", file=sys.stderr)


def _report_bad(record: dict) -> None:
    _note(f"line {record['line']} left out: {record['error']}")


def _names(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names no policy")
    return names


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _natural(text: str) -> int:
    return _at_least(text, 0)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")


def _at_least(text: str, least: int) -> int:
    value = int(text) if text.isdecimal() else least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def main(argv: Sequence[str] | None = None, prog: str = "leapjax decode") -> int:
    """Run `leapjax decode`; also the script `scripts/decode.py`.

    Args:
      argv: arguments; None takes those of the process.
      prog: as the user calls it.

    Returns:
      The exit status.
    """

    def command(argv: Sequence[str] | None) -> int:
        parser = Parser(prog=prog, description=DESCRIPTION, epilog=EPILOG)
        add_arguments(parser)
        return run(parser.parse_args(argv))

    return run_main(command, argv, prog)
