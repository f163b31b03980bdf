"""`leapjax benchmark`: timings of this machine, in one run."""

from __future__ import annotations

import argparse

from leapjax.cli.benchmark_floor import run_floor
from leapjax.cli.benchmark_receipt import run_check, run_receipt
from leapjax.cli.benchmark_runs import (
    run_against,
    run_cost,
    run_decoding,
    run_experts,
    run_grid,
)
from leapjax.cli.common import at_least, command, numbers, place
from leapjax.errors import UserError

DESCRIPTION = """\
Times decoding on this machine: tokens/s by KV cache and batch, the share of time in which the
device waits for the host, and continuous refilling against lock-step batches.

Every row does the same work everywhere: random prompts, a fixed schedule. Settings alternate
within the run; medians of --repeats rounds are printed with their range. Timings of a machine
that does other things are noisy: look at ratios.

  # The embedded model, and a random one of 60 M parameters
  leapjax benchmark
  leapjax benchmark --models 60m --batches 1,8 --json bench.json

With --against torch (in a clone of the repository), leapjax and three PyTorch decoders take
turns on the same weights and prompts, with LocalLeap: a plain one (published loop, logits and
float64 softmax of the whole sequence), the same with a dual cache, and an optimised one.
Speeds stand beside the share of what this machine could do at most, measured in the same run.
Where tokens or steps differ from leapjax's, no ratio is given.

  leapjax benchmark --against torch --write docs/performance.md
  leapjax benchmark --against torch --quick

With --cost, a step is timed by canvas, batch and vocabulary, and the model of its cost that
docs/performance.md states is fitted to that.

  leapjax benchmark --cost --write docs/performance.md

With --experts, a model with 8 of 64 experts a token and a dense one of equal active parameters
(60 M) take turns: passes over 768 columns, and over windows of 32, whose time stands beside what
the experts' bytes and the FLOPs would need at the rates measured in the same run.

  leapjax benchmark --experts --write docs/performance.md

With --floor, passes of the compiled loop are timed one by one, as shares of the time that this
device, by its measured copy bandwidth and matrix rate, would need at least, and against the
model alone. For accelerators; LLaDA-8B's shape (random weights, bfloat16) takes 16 GB.

  leapjax benchmark --floor dual:1,none:16 --models llada-8b --write docs/performance.md
  leapjax benchmark --floor --quick

With --receipt, what a device does with leapjax goes into one JSON that can be sent back: known
answers decoded, copy bandwidth and matrix rates, passes of LLaDA-8B's shape (with as many
layers as fit; on a CPU a model of 60 M parameters) against the plan. It takes some minutes and
names neither the machine nor its user. See docs/receipts/README.md.

  leapjax benchmark --receipt v6e.json
  leapjax benchmark --receipt v5e-tensor.json --mesh tensor=8
  leapjax benchmark --check-receipt v6e.json

--quick shows in a minute or less that everything runs, with numbers that mean nothing. It goes
with every run but --grid.

With --grid N, N settings are answered in one stream, in a warm loop and in a process each.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    from leapjax.caches import CACHES

    add, count = parser.add_argument, at_least(1)
    add(
        "--models",
        metavar="NAME,…",
        help="embedded, 60m, llada-8b, or paths (embedded,60m; with --quick one)",
    )
    add(
        "--caches",
        metavar="NAME,…",
        help=f"KV caches ({','.join(CACHES)}; none,dual with --quick); where attention must be "
        "block-causal, or must not, a model of the same shape and weights is timed",
    )
    add(
        "--batches",
        type=numbers,
        metavar="N,…",
        help="rows (1,8,32; against torch and with --experts 1,8)",
    )
    add("--prompt-length", type=count, metavar="N", help="tokens (32; 512 with --floor, --experts)")
    add("--gen-length", type=count, metavar="N", help="canvas (64; 256 with --floor, --experts)")
    add("--block-length", type=count, default=32, metavar="N", help="block (32)")
    add("--tokens-per-step", type=count, default=4, metavar="N", help="the schedule's (4)")
    add("--repeats", type=count, default=5, metavar="N", help="rounds (5)")
    add(
        "--engine-requests",
        type=count,
        metavar="N",
        help="of the engine's part (48 a slot; 6 a slot with models from 10M parameters on)",
    )
    add("--engine-repeats", type=count, metavar="N", help="its rounds (2; 1 with those)")
    add(
        "--engine-slots",
        type=count,
        metavar="N",
        help="rows at once in the engine's part (16, as decode on CPU; 4 with those models)",
    )
    add(
        "--refresh-groups",
        type=numbers,
        metavar="N,…",
        help="time only streams by the rows that refresh their KV cache together (1,2,4)",
    )
    add("--json", type=place, metavar="FILE", help="write everything as JSON too")
    add("--cost", action="store_true", help="a step's cost against its size")
    add("--experts", action="store_true", help="a model with experts against a dense one")
    add("--grid", type=count, metavar="N", help="N settings, three ways")
    add("--limit", type=count, default=100, metavar="N", help="problems of --grid (100)")
    add = parser.add_argument_group("--floor").add_argument
    add(
        "--floor",
        nargs="?",
        const="dual:1,none:16",
        metavar="CACHE:ROWS,…",
        help="passes as shares of the device's floor; cache none or dual (dual:1,none:16)",
    )
    add(
        "--weights",
        metavar="stacked,layers",
        help="layers in stacks, or taken apart (as decoding has them: on a GPU apart)",
    )
    add(
        "--xla",
        action="append",
        metavar="NAME=VALUE;…",
        help="compiler options to try; again for another set, '' for none",
    )
    add(
        "--keep",
        type=place,
        metavar="FOLDER",
        help="put compiled programs, a summary of a profile of each, and JSON there",
    )
    add = parser.add_argument_group("--receipt").add_argument
    add("--receipt", metavar="FILE", help="measure this device, write a receipt; - is stdout")
    add("--mesh", metavar="AXES", help="devices it uses, such as tensor=8 (default: one device)")
    add("--check-receipt", metavar="FILE", help="check a receipt and print its table")
    add = parser.add_argument_group("against PyTorch, --cost, --experts and --floor").add_argument
    add("--against", choices=["torch"], help="compare with PyTorch (in a clone only)")
    add(
        "--cases",
        default="short,long",
        help="short: prompt 128, canvas 128, --batches; long: 512 and 256, one row, one token "
        "a step",
    )
    add(
        "--max-steps",
        type=count,
        default=8,
        metavar="N",
        help="of uncached decodes of large models, whose steps all cost the same (8)",
    )
    add("--write", type=place, metavar="FILE", help="put the tables at a Markdown file's markers")
    add("--quick", action="store_true", help="a minute or less, numbers without meaning")


def run(args: argparse.Namespace) -> int:
    """Carry the command out.

    Args:
      args: as `add_arguments` declares them.

    Returns:
      The exit status: 1 if a case of `--floor` could not be run.

    Raises:
      UserError: options that don't go together.
    """
    floor, grid = args.floor is not None, args.grid is not None
    runs = bool(args.against), args.cost, args.experts, grid, floor
    receipts = args.receipt is not None, args.check_receipt is not None
    if sum(runs + receipts) > 1:
        raise UserError(
            "--against torch, --cost, --experts, --grid, --floor, --receipt and --check-receipt "
            "are runs of their own"
        )
    if any(receipts):
        return (run_receipt if receipts[0] else run_check)(args, _usual())
    if args.mesh:
        raise UserError("--mesh goes with --receipt")
    long = (floor or args.experts) and not args.quick
    args.prompt_length = args.prompt_length or (512 if long else 32)
    args.gen_length = args.gen_length or (256 if long else 64)
    if floor:
        return run_floor(args)
    if args.keep or args.xla or args.weights:
        raise UserError("--keep, --xla and --weights: each goes with --floor")
    if grid:
        if args.quick:
            raise UserError("--quick does not go with --grid; give it a small N and --limit")
        return run_grid(args)
    if args.against:
        return run_against(args)
    if args.cost:
        return run_cost(args)
    if args.experts:
        return run_experts(args)
    if args.write:
        raise UserError("--write goes with --against torch, --cost, --experts or --floor")
    return run_decoding(args)


def _usual() -> dict[str, object]:
    """The arguments' values where nothing is given."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return vars(parser.parse_args([]))


main = command("benchmark", add_arguments, run, DESCRIPTION)
