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

A canvas of masked tokens behind each prompt is filled in over several passes; the
policy chooses which positions commit in each. Answers go to stdout, or as JSON
records to --output; everything else goes to stderr.
"""

EPILOG = f"""\
examples:
  # One question, the model that comes with leapjax
  leapjax decode --prompt "{QUESTION}"

  # A conversation with it; sample problems come without any option
  leapjax decode --chat

  # A model of your own (converted, a hub folder, or a hub id), greedy for comparison
  leapjax decode --model checkpoints/llada-8b --policy low_confidence --prompt "Why?"

  # A file of records, the options of a config file and one of them changed
  leapjax decode --model checkpoints/llada-8b \\
      --config configs/llada-8b-instruct.yaml --threshold 0.95 \\
      --input prompts.jsonl --output answers.jsonl

  # Millions of records: a folder of shards; after a kill the same command goes on
  leapjax decode --model checkpoints/llada-8b \\
      --input gs://bucket/prompts.jsonl --output gs://bucket/answers \\
      --max-errors 100 --resume

  # Processes share a job: each, on any machine that sees the folder, runs the same command
  leapjax decode --model checkpoints/llada-8b --input gs://bucket/prompts.jsonl \\
      --output gs://bucket/answers --shard-size 100 --resume

  # Programs that leapjax plan --save compiled elsewhere (load only folders that you trust)
  leapjax decode --model checkpoints/llada-8b --input prompts.jsonl \\
      --output answers --resume --programs programs --no-compile

  # In a pipe: records in, records out
  cat prompts.jsonl | leapjax decode --input - | jq .text

  # Which token was committed when and why: a page with a slider
  leapjax decode --prompt "{QUESTION}" --trace apples.html

  # Five samples of one prompt
  leapjax decode --model checkpoints/llada-8b --prompt "Name a colour." \\
      --temperature 0.7 --num-samples 5 --json

records:
  Each input line is an object with one of prompt, messages, prompt_ids, infill,
  infill_ids, and if wanted id, options (for this record only), stop. Other
  keys come back as metadata.

the summary on stderr:
  tokens/s              tokens before the first eos or stop id, per second, with
                        compiling
  tokens per step       the same tokens, per step of a row
  16x fewer passes      one token a step would have taken 16 times as many for
                        the same positions (those that early stop fills in,
                        which no pass decides, don't count)
  40 rows refreshed     with a KV cache: rows of full passes at the start of
                        blocks, how many were wanted, and their share of the
                        passes' time, estimated from FLOPs and bytes
  900 of 9,000 prompt tokens prefilled
                        with cache block: the others were computed once, for
                        another prompt; and how many times the distinct ones

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
        help="compute what prompts have in common at their beginning once, with cache block "
        "(default: auto, where that is possible); answers stay the same",
    )
    group.add_argument(
        "--programs",
        metavar="DIR",
        help="compiled programs that `leapjax plan --save DIR` wrote, instead of compiling; their "
        "--mesh and --batch-size are taken over. Loading runs code of the folder: trust it",
    )
    group.add_argument(
        "--no-compile",
        action="store_true",
        help="with --programs: a run that needs a program which is not there ends (status 2), "
        "instead of compiling it",
    )

    add = parser.add_argument_group("prompts").add_argument
    add("--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times")
    add(
        "--infill",
        action="append",
        dest="prompt",
        type=lambda text: {"infill": text},
        metavar="TEXT",
        help='fill in a text: "Tom has [MASK]*3 apples" has three open tokens; \\[MASK] is text',
    )
    add("--chat", action="store_true", help="hold a conversation; /help lists its commands")
    add("--system", metavar="TEXT", help="with --chat: what the model is told before it begins")
    add("--input", metavar="PATH", help="JSONL: a path or URL, packed or not; - is stdin")
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
        "of shards, which can be resumed; - is stdout",
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
        "--chip-hour",
        type=_price,
        metavar="PRICE",
        help="of a chip and hour: summary.json of a folder says what the run cost",
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
        "--fields",
        type=_names,
        metavar="NAME,…",
        help="records hold only these keys, such as id,text (default: all but --details')",
    )
    add(
        "--trace",
        type=place,
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

    parser.add_argument_group("options file").add_argument(
        "--config",
        metavar="FILE",
        help="YAML of the options below, flags win over it; both win over a model's own "
        "decode.yaml, and that over the defaults named below",
    )
    parser.add_argument(
        "--help-policies",
        action=HelpPolicies,
        help="explain every policy, with its source, options and defaults, and end",
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
