"""The flags and the help text of `leapjax decode`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable

from leapjax.cli.common import add_model_options, at_least, listed, place
from leapjax.cli.help_policies import HelpPolicies
from leapjax.terminal.examples import QUESTION

DESCRIPTION = """\
Complete prompts with a masked diffusion language model.

The canvas, a run of mask tokens after each prompt, is filled in over several
passes; in each, the policy chooses which positions commit. Answers go to stdout, or
as JSON records to --output; everything else goes to stderr.
"""

EPILOG = f"""\
examples:
  # One question, the model that comes with leapjax
  leapjax decode --prompt "{QUESTION}"

  # A conversation with it (without any option, it solves sample problems)
  leapjax decode --chat

  # A model of your own (converted, a hub folder, or a hub id), greedy for comparison
  leapjax decode --model checkpoints/llada-8b --policy low_confidence --prompt "Why?"

  # A file of records, with the options of a config file, one of them overridden
  leapjax decode --model checkpoints/llada-8b \\
      --config configs/llada-8b-instruct.yaml --threshold 0.95 \\
      --input prompts.jsonl --output answers.jsonl

  # Millions of records: a folder of shards; after a kill, the same command resumes
  leapjax decode --model checkpoints/llada-8b \\
      --input gs://bucket/prompts.jsonl --output gs://bucket/answers \\
      --max-errors 100 --resume

  # Several processes share a job: on any machine that sees the folder, run the same command
  leapjax decode --model checkpoints/llada-8b --input gs://bucket/prompts.jsonl \\
      --output gs://bucket/answers --shard-size 100 --resume

  # Programs that leapjax plan --save compiled elsewhere (load only folders that you trust)
  leapjax decode --model checkpoints/llada-8b --input prompts.jsonl \\
      --output answers --resume --programs programs --no-compile

  # In a pipe: records in, records out
  cat prompts.jsonl | leapjax decode --input - | jq .text

  # A page with a slider: which token was committed when, and why
  leapjax decode --prompt "{QUESTION}" --trace apples.html

  # Five samples of one prompt
  leapjax decode --model checkpoints/llada-8b --prompt "Name a colour." \\
      --temperature 0.7 --num-samples 5 --json

records:
  Each input line is an object with one of prompt, messages, prompt_ids, infill,
  infill_ids. Optional keys are id, options (for this record only) and stop.
  Other keys come back as metadata.

the summary on stderr:
  tokens/s              tokens before the first eos or stop id, per second,
                        compilation included
  tokens per step       the same tokens, per step of a row
  16x fewer passes      one token a step would have taken 16 times as many
                        passes for the same positions (without those that
                        early stop fills in, which no pass decides)
  40 rows refreshed     with a KV cache: rows in full passes at the start of
                        blocks, how many of them needed one, and the share of
                        the passes' time, estimated from FLOPs and bytes
  900 of 9,000 prompt tokens prefilled
                        with cache block: the other tokens were reused from
                        another prompt; and the ratio to the distinct tokens

exit status: 0 done, 2 bad input or options, 130 interrupted, 143 ended by SIGTERM.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
      parser: of this command.
    """
    from leapjax.options import add_option_flags

    group = parser.add_argument_group("model")
    add_model_options(group, dtype="float32 on CPU, else bfloat16", batch_size=_positive)
    group.add_argument(
        "--share-prefix",
        choices=("auto", "on", "off"),
        help="with cache block: compute a prefix that prompts have in common only once (default: "
        "auto, where that is possible); answers stay the same",
    )
    group.add_argument(
        "--programs",
        metavar="DIR",
        help="instead of compiling, load the programs that `leapjax plan --save DIR` wrote, with "
        "their --mesh and --batch-size. Loading runs code from the folder: it must be trusted",
    )
    group.add_argument(
        "--no-compile",
        action="store_true",
        help="with --programs: if a program is missing, end with status 2 instead of compiling it",
    )

    add = parser.add_argument_group("prompts").add_argument
    add("--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times")
    add(
        "--infill",
        action="append",
        dest="prompt",
        type=lambda text: {"infill": text},
        metavar="TEXT",
        help='fill in a text: "Tom has [MASK]*3 apples" has three masks; \\[MASK] is literal text',
    )
    add("--chat", action="store_true", help="hold a conversation; /help lists its commands")
    add("--system", metavar="TEXT", help="with --chat: the system message")
    add("--input", metavar="PATH", help="JSONL: a path or URL, compressed or not; - is stdin")
    add(
        "--raw",
        action="store_true",
        help="don't apply the chat template; control tokens in prompts are parsed",
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
        help="put up to N bad records in *.errors.jsonl and carry on (default: 0)",
    )

    add = parser.add_argument_group("output").add_argument
    add(
        "--output",
        metavar="PATH",
        help="write records: a PATH in .jsonl is a file, written when all are done; any other is a "
        "folder of shards, which can be resumed; - is stdout",
    )
    add("--resume", action="store_true", help="resume the interrupted job in that folder")
    add("--overwrite", action="store_true", help="replace the output if it exists")
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
        help="with a folder: the most work that a kill can lose (default: 30)",
    )
    add(
        "--chip-hour",
        type=_price,
        metavar="PRICE",
        help="price of a chip-hour: a folder's summary.json then states what the run cost",
    )
    add(
        "--json",
        action="store_true",
        help="print records instead of text on stdout (implied by --input)",
    )
    add(
        "--details",
        action="store_true",
        help="records say why, and with what confidence, each position was committed",
    )
    add(
        "--fields",
        type=_names,
        metavar="NAME,…",
        help="keys that records hold, such as id,text (default: all but those of --details)",
    )
    add(
        "--trace",
        type=place,
        metavar="PATH",
        help="show which token was committed when and why: a page (.html) or a picture for "
        "slides (.gif, .png); decodes once more for each further policy",
    )
    add(
        "--trace-policies",
        type=_names,
        metavar="NAME,…",
        help="policies to show side by side, with the names of leapjax evaluate (default: the "
        "chosen policy and greedy, which is always shown)",
    )
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="progress bar on stderr (default: on a terminal; elsewhere, a job with --output as a "
        "file or folder prints a line every minute)",
    )

    parser.add_argument_group("options file").add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of the options below; flags override it, it overrides the model's own "
        "decode.yaml, and that overrides the defaults named below",
    )
    parser.add_argument(
        "--help-policies",
        action=HelpPolicies,
        help="explain every policy, with its source, options and defaults, and exit",
    )
    add_option_flags(parser)


def _names(text: str) -> list[str]:
    if not (names := listed(text)):
        raise argparse.ArgumentTypeError("names nothing")
    return names


def _amount(what: str) -> Callable[[str], float]:
    def amount(text: str) -> float:
        with contextlib.suppress(ValueError):
            if 0 <= (value := float(text)) < float("inf"):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what}")

    return amount


_positive, _natural = at_least(1), at_least(0)
_seconds, _price = _amount("number of seconds"), _amount("price")
