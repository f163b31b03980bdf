"""`leapjax decode`: complete prompts, from the command line or a JSONL file."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from leapjax.cli.common import OK, Parser, run_main
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

  # In a pipe: records in, records out
  cat prompts.jsonl | leapjax decode --input - | jq .text

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

exit status: 0 done, 2 bad input or options, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
      parser: of this command.
    """
    from leapjax.options import add_option_flags

    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="PATH_OR_ID", help="checkpoint (default: the one in the package)")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="compute type (default: float32 on CPU, else bfloat16)",
    )
    add("--batch-size", type=_positive, metavar="N", help="rows decoded at once")

    add = parser.add_argument_group("prompts").add_argument
    add("--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times")
    add("--input", metavar="FILE", help="JSONL records; - is stdin")
    add(
        "--raw",
        action="store_true",
        help="no chat template for prompts; control tokens in them are parsed",
    )
    add("--limit", type=_positive, metavar="N", help="only the first N records")
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
    add("--output", metavar="FILE", help="write records to this .jsonl file, when all are done")
    add("--overwrite", action="store_true", help="replace the output if it is there")
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
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="progress bar on stderr (default: on a terminal)",
    )

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
    from leapjax.options import decode_config, read_config, set_flags

    file = read_config(args.config) if args.config else None
    config = decode_config(set_flags(args), file, _note)
    if args.prompt and args.input:
        raise UserError("--prompt and --input are both given; choose one")
    if not args.prompt and not args.input:
        raise UserError("no prompt; give --prompt TEXT or --input FILE")
    if args.prompt and not all(args.prompt):
        raise UserError("--prompt is empty; give some text")
    if (args.num_samples or 1) > 1 and config.temperature == 0:
        _note("temperature is 0, so samples of a prompt are alike unless its record sets one")
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(_opened(args.input)) if args.input else None
        return _decode(args, config, file.model if file else None, stream, stack)


def _decode(args, config, model_of_file: str | None, stream: BinaryIO | None, stack) -> int:
    import itertools

    import leapjax
    from leapjax.jobs import single
    from leapjax.records import Intake

    keep = _report_bad
    if args.output:
        _not_the_input(args)
        sink = single.OutputFile(args.output, details=args.details, overwrite=args.overwrite)
        keep = sink.keep_bad
    elif args.json or args.input:
        sink = single.LineSink(_utf8(sys.stdout), args.details)
    elif args.details:
        raise UserError("--details is for records; add --json or --output FILE")
    else:
        several = len(args.prompt) > 1 and args.num_samples is None
        sink = TextSink(_utf8(sys.stdout), args.prompt if several else ())

    lm = leapjax.load(args.model or model_of_file, dtype=args.dtype)
    intake = Intake(
        config,
        lm.config,
        lm.codec,
        raw=args.raw,
        stop=args.stop or (),
        samples=args.num_samples,
    )
    bad = single.BadRecords(args.max_errors, keep)
    if stream is not None:
        source = single.from_file(stream, "stdin" if args.input == "-" else args.input)
    else:
        source = single.from_prompts(args.prompt)
    source = itertools.islice(source, args.limit)
    if isinstance(sink, single.OutputFile):
        stack.enter_context(sink)  # published when the stack closes without an error
    bar = stack.enter_context(_bar(args, stream))
    summary = single.run(lm, source, intake, sink, bad, batch_size=args.batch_size, seen=bar)
    stack.close()
    if bad.count:
        place = f" in {sink.errors_path}" if isinstance(sink, single.OutputFile) else ""
        _note(f"{bad.count} bad record{'s' * (bad.count != 1)} set aside{place}")
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


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """The input, opened before any slow work, or a line saying why not."""
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = open(name, "rb")
    except OSError as e:
        reason = "no such file" if isinstance(e, FileNotFoundError) else e.strerror or e
        raise UserError(f"input {name}: {reason}") from e
    with stream:
        yield stream


def _not_the_input(args: argparse.Namespace) -> None:
    if args.input and args.input != "-" and Path(args.output).exists():
        if Path(args.output).samefile(args.input):
            raise UserError(f"output {args.output}: is the input; choose another name")


@contextlib.contextmanager
def _bar(args: argparse.Namespace, stream: BinaryIO | None) -> Iterator:
    """A progress bar on stderr, as a function that takes the counts so far."""
    wanted = args.progress
    if wanted is None:
        wanted = sys.stderr.isatty() and not args.prompt
    if not wanted:
        yield lambda summary: None
        return
    from tqdm import tqdm

    total = len(args.prompt) if args.prompt else _count(stream)
    if total is not None:
        total = min(total, args.limit or total) * (args.num_samples or 1)
    with tqdm(total=total, unit="answer", file=sys.stderr, dynamic_ncols=True) as bar:

        def show(summary) -> None:
            rate = summary.tokens / max(summary.seconds, 1e-9)
            bar.set_postfix_str(
                f"{rate:.0f} tokens/s, {summary.tokens / max(summary.steps, 1):.1f} tokens/step",
                refresh=False,
            )
            bar.update()

        yield show


def _count(stream: BinaryIO | None) -> int | None:
    """Records in a file, for the time left; None where it can be read only once."""
    if stream is None or not stream.seekable():
        return None
    start = stream.tell()
    count = sum(bool(line.strip()) for line in stream)
    stream.seek(start)
    return count


def _utf8(stream: IO[str]) -> IO[str]:
    """Answers are UTF-8 whatever the locale says; a pipe carries bytes."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="replace")
    return stream


def _note(line: str) -> None:
    print(f"leapjax decode: note: {line}", file=sys.stderr)


def _report_bad(record: dict) -> None:
    _note(f"line {record['line']} left out: {record['error']}")


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _natural(text: str) -> int:
    return _at_least(text, 0)


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
