"""`leapjax benchmark`: timings of this machine, in one run."""

import argparse

from leapjax.cli import benchmark_runs as runs
from leapjax.cli.common import at_least, command, numbers, place
from leapjax.errors import UserError

DESCRIPTION = """\
Time decoding on this machine: tokens/s by KV cache and batch size, the share of time in which
the device waits for the host, and continuous refilling against lock-step batches.

All rows do the same work, on random prompts with a fixed schedule. Settings alternate within the
run; the table shows medians of --repeats rounds with their range. Timings on a busy machine are
noisy: compare ratios.

  # The embedded model, and a random one of 60 M parameters
  leapjax benchmark
  leapjax benchmark --models 60m --batches 1,8 --json bench.json

With --against torch (in a clone of the repository), leapjax and three PyTorch decoders take
turns on the same weights and prompts, with LocalLeap: a plain one (published loop, logits and
float64 softmax of the whole sequence), the same with a dual cache, and an optimised one.
Next to each speed is its share of this machine's maximum, measured in the same run. A decoder
whose tokens or steps differ from leapjax's gets no ratio.

  leapjax benchmark --against torch --write docs/performance.md
  leapjax benchmark --against torch --quick

With --floor, the passes of the compiled loop are timed one by one and compared with the model
alone, and with the least time that this device's measured copy bandwidth and matrix rate
allow. It is for accelerators; LLaDA-8B's shape (random weights, bfloat16) takes 16 GB.

  leapjax benchmark --floor dual:1,none:16 --models llada-8b --write docs/performance.md
  leapjax benchmark --floor --quick

With --receipt, results of leapjax on a device go into one JSON file that can be sent back:
decodes with known answers, copy bandwidth and matrix rates, and passes of LLaDA-8B's shape (with
as many layers as fit; on a CPU, a model of 60 M parameters) against the plan. It takes some
minutes and names neither the machine nor its user. See docs/receipts/README.md.

  leapjax benchmark --receipt v6e.json
  leapjax benchmark --receipt v5e-tensor.json --mesh tensor=8
  leapjax benchmark --check-receipt v6e.json

--quick checks in a minute or less that everything runs; its numbers mean nothing.
"""

_LENGTHS = {"prompt_length", "gen_length", "block_length", "tokens_per_step"}
_COMMON = {"models", "repeats", "json", "quick"}
# The argument that chooses a run -> what carries it out, and the arguments that it takes.
RUNS = {
    "against": (runs.run_against, _COMMON | {"batches", "cases", "max_steps", "write"}),
    "floor": (runs.run_floor, _COMMON | _LENGTHS | {"weights", "write"}),
    "receipt": (runs.run_receipt, {"mesh", "repeats", "quick"}),
    "check_receipt": (runs.run_check, set()),
}
_ENGINE = {"engine_requests", "engine_repeats", "engine_slots"}
_DECODING = _COMMON | _LENGTHS | _ENGINE | {"caches", "batches"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    from leapjax.caches import CACHES

    add, count = parser.add_argument, at_least(1)
    add(
        "--models",
        metavar="NAME,…",
        help="embedded, 60m, llada-8b, or paths (embedded,60m; only one with --quick)",
    )
    add(
        "--caches",
        metavar="NAME,…",
        help=f"KV caches ({','.join(CACHES)}; none,dual with --quick); a cache that a model "
        "can't use is timed on a model with the same shape and weights and fitting attention",
    )
    add("--batches", type=numbers, metavar="N,…", help="rows (1,8,32; against torch: 1,8)")
    add("--prompt-length", type=count, metavar="N", help="in tokens (32; 512 with --floor)")
    add("--gen-length", type=count, metavar="N", help="canvas length (64; 256 with --floor)")
    add("--block-length", type=count, default=32, metavar="N", help="block (32)")
    add("--tokens-per-step", type=count, default=4, metavar="N", help="of the schedule (4)")
    add("--repeats", type=count, default=5, metavar="N", help="rounds (5)")
    add(
        "--engine-requests",
        type=count,
        metavar="N",
        help="requests in the engine's part (48 per slot; 6 per slot from 10M parameters on)",
    )
    add("--engine-repeats", type=count, metavar="N", help="rounds (2; 1 from 10M parameters)")
    add(
        "--engine-slots",
        type=count,
        metavar="N",
        help="rows at once in the engine's part (16, as decode on CPU; 4 from 10M parameters on)",
    )
    add("--json", type=place, metavar="FILE", help="write everything as JSON too")
    add("--quick", action="store_true", help="a minute or less; its numbers mean nothing")
    add = parser.add_argument_group("--floor").add_argument
    add(
        "--floor",
        nargs="?",
        const="dual:1,none:16",
        metavar="CACHE:ROWS,…",
        help="time passes against the device's floor; cache none or dual (dual:1,none:16)",
    )
    add(
        "--weights",
        metavar="stacked,layers",
        help="layers stacked, or each by itself (as decoding does: on a GPU, by itself)",
    )
    add = parser.add_argument_group("--receipt").add_argument
    add("--receipt", metavar="FILE", help="measure this device and write a receipt; - is stdout")
    add("--mesh", metavar="AXES", help="devices to use, such as tensor=8 (default: one device)")
    add("--check-receipt", metavar="FILE", help="check a receipt and print its table")
    add = parser.add_argument_group("against PyTorch").add_argument
    add("--against", choices=["torch"], help="compare with PyTorch (in a clone only)")
    add(
        "--cases",
        default="short,long",
        help="short: prompt 128, canvas 128, --batches; long: prompt 512, canvas 256, one row, "
        "one token a step",
    )
    add(
        "--max-steps",
        type=count,
        default=8,
        metavar="N",
        help="limit for uncached decodes of large models, whose steps all cost the same (8)",
    )
    add(
        "--write",
        type=place,
        metavar="FILE",
        help="put the tables at a Markdown file's markers (also with --floor)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry the command out; 1 if a case of `--floor` could not be run."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    usual = vars(parser.parse_args([]))
    given = {name for name, value in usual.items() if getattr(args, name) != value}
    if len(chosen := sorted(given & {*RUNS})) > 1:
        raise UserError(f"{' and '.join(map(_flag, chosen))} are runs of their own")
    function, takes = RUNS[chosen[0]] if chosen else (runs.run_decoding, _DECODING)
    if other := sorted(given - takes - {*chosen}):
        if chosen:
            raise UserError(f"{_flag(chosen[0])} does not go with {', '.join(map(_flag, other))}")
        with_these = " or ".join(_flag(name) for name in RUNS if other[0] in RUNS[name][1])
        raise UserError(f"{_flag(other[0])} goes with {with_these}")
    long = "floor" in chosen and not args.quick
    args.prompt_length = args.prompt_length or (512 if long else 32)
    args.gen_length = args.gen_length or (256 if long else 64)
    return function(args)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


main = command("benchmark", add_arguments, run, DESCRIPTION)
