"""`leapjax ablate`: accuracy and steps over a grid of decode options, and studies of them."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leapjax.cli.common import OK, Parser, note_plots, place, run_main
from leapjax.errors import UserError
from leapjax.progress import counted

DESCRIPTION = """\
Solve a task's problems under many settings of a policy and compare: accuracy, agreement with
greedy decoding, steps. Numbers that a row may set for itself are rows of one stream and share
one compiled program; policy, cache, canvas and block have a stream for each combination.
"""

EPILOG = """\
examples:
  # LocalLeap's numbers, 6 x 3 x 3 of them on 100 problems
  leapjax ablate --grid threshold=0.7:0.95:6 relaxed_threshold=0.5,0.65,0.8 radius=1,4,16 \\
    --limit 100 --output runs/ablation

  # With a structural axis, and with several policies (each takes the axes that it reads)
  leapjax ablate --grid threshold=0.8,0.9 block_length=16,32,64
  leapjax ablate --grid policy=localleap,placebo,confidence_threshold threshold=0.6:0.95:8

  # Is it locality? LocalLeap against one lower threshold, and against random neighbourhoods
  leapjax ablate --study locality --limit 200 --output runs/locality

  # Does a relaxed threshold that rises with distance help, and do sides matter?
  leapjax ablate --study decay --limit 200 --output runs/decay

A grid: NAME=a,b,c lists values, NAME=a:b:n takes n values from a to b. Points whose
relaxed_threshold is above their threshold are left out and counted. The first two axes with
several values span the heat map, the others are its panels.

Studies compare at equal mean steps: two neighbouring settings of the control are mixed so that
their mean steps are the setting's. docs/ablations.md says more.

--output DIR gets CSV, JSON, Markdown, plots (extra `plots`), and the answers as they come: the
same command goes on where it was, another grid reuses what is there. The table goes to stdout.

exit status: 0 done, 2 bad input or options, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
      parser: of this command.
    """
    from leapjax.ablation.studies import NAMES
    from leapjax.config import QUANTIZATIONS

    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--grid", nargs="+", metavar="AXIS", help="axes of a grid, NAME=VALUES each")
    what.add_argument("--study", choices=NAMES, help="a question with settings of its own")
    add("--model", metavar="PATH_OR_ID", help="checkpoint (default: the one in the package)")
    add("--dtype", choices=("float32", "bfloat16"), help="compute type (default: as in decode)")
    add("--mesh", metavar="AXES", help="devices to spread it over: data=2,tensor=4 (also fsdp)")
    add("--quantize", choices=QUANTIZATIONS, help="round the matrices to 8 bits after loading")
    add(
        "--task",
        default="wordproblems",
        metavar="NAME",
        help="wordproblems, or gsm8k:PATH for JSONL of question and answer (wordproblems)",
    )
    add("--split", metavar="NAME", help="wordproblems: heldout or unseen (default: heldout)")
    add("--strata", type=_listed, default=[], metavar="NAME,…", help="groups of problems (all)")
    add("--limit", type=int, default=100, metavar="N", help="problems in all (default: 100)")
    add(
        "--seed",
        type=int,
        default=1,
        metavar="S",
        help="of the problems (default: 1; `leapjax evaluate` has 0, so these are others)",
    )
    add("--gen-length", type=int, metavar="N", help="canvas (default: the model's or the task's)")
    add("--block-length", type=int, metavar="N", help="block (default: the model's or the task's)")
    add("--batch-size", type=int, metavar="N", help="rows decoded at once")
    add("--output", type=place, metavar="DIR", help="keep answers, tables and plots there")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def run(args: argparse.Namespace) -> int:
    """Carry the command out.

    Args:
      args: as `add_arguments` declares them.

    Returns:
      The exit status.

    Raises:
      UserError: bad input or options.
    """
    from leapjax import tasks
    from leapjax.ablation import grid, studies
    from leapjax.compilation import enable_cache
    from leapjax.config.resolve import CANVAS, checkpoint_options, resolve
    from leapjax.options import set_flags

    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; expected at least 1")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; expected at least 0")
    task = tasks.get(args.task)
    axes = [grid.parse_axis(text) for text in args.grid or ()]
    given = set_flags(args, CANVAS)
    for axis in axes:
        if axis.name in given:
            flag = axis.name.replace("_", "-")
            raise UserError(f"--{flag} is set, and an axis of --grid too; keep one")
    base = resolve(given, None, checkpoint_options(args.model), task)
    if args.study:
        made = studies.study(args.study, base)
        configs = made.configs
    else:
        made = grid.build(axes, base)
        configs = [point.config for point in made.points]
        note = f"{len(made.points)} points, {made.left_out} left out, {made.merged} merged"
        print(note, file=sys.stderr)
    problems = task.problems(args.split, args.strata, args.limit, args.seed)
    if args.output:
        note_plots("leapjax ablate")
    enable_cache()
    report = ablate(args, task, problems, base, made, configs)
    _write(args, report)
    return OK


def ablate(args: argparse.Namespace, task, problems, base, made, configs) -> dict[str, Any]:
    """Decode every setting and put the report together."""
    import jax

    from leapjax.ablation import answers, report
    from leapjax.evaluation import runner
    from leapjax.terminal.embedded import load

    lm = load(args.model, dtype=args.dtype, quantize=args.quantize, mesh=args.mesh)
    if lm.codec is None:
        raise UserError(f"{args.model}: has no tokenizer, so answers can't be read")
    batch_size = args.batch_size or runner.default_batch_size()
    configs = list(dict.fromkeys([*(answers.greedy(c) for c in configs), *configs]))
    with counted(args.study or "grid", len(configs) * len(problems), "answer") as show:
        every = answers.decode(
            lm,
            task,
            problems,
            configs,
            Path(args.output) if args.output else None,
            batch_size=batch_size,
            details=bool(args.study),
            show=show,
        )
    about = {
        "settings": {
            "task": task.name,
            "split": args.split or task.splits[0],
            "strata": list(dict.fromkeys(p.stratum for p in problems)),
            "seed": args.seed,
            "gen_length": base.gen_length,
            "block_length": base.block_length,
            "batch_size": batch_size,
        },
        "n": len(problems),
        "problems_sha256": hashlib.sha256(
            "".join(f"{p.id}\n" for p in problems).encode()
        ).hexdigest(),
        "model": {
            "name": "embedded" if args.model is None else Path(args.model).name,
            "hash": lm.model_hash,
            "dtype": lm.dtype,
            "quantization": lm.quantization,
        },
        "device": runner.device_name(),
        "backend": jax.default_backend(),
        "versions": runner.versions(),
    }
    if args.study:
        return about | report.of_study(made, every, lm.config.eos_token_id)
    return about | report.of_grid(made, every)


def _write(args: argparse.Namespace, made: dict[str, Any]) -> None:
    from leapjax.ablation import report

    text = report.study_markdown(made) if args.study else report.grid_markdown(made)
    sys.stdout.write(text)
    sys.stdout.flush()
    if args.output:
        save = report.save_study if args.study else report.save_grid
        names = save(made, Path(args.output))
        print(f"{args.output}: {', '.join(names)}", file=sys.stderr)


def main(argv: Sequence[str] | None = None, prog: str = "leapjax ablate") -> int:
    """Run `leapjax ablate`; also the script `scripts/ablate.py`.

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


if __name__ == "__main__":
    sys.exit(main())
