"""`leapjax ablate`: accuracy and steps over a grid of decode options, and studies of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from leapjax.cli.common import OK, command, note_plots, place
from leapjax.cli.study_arguments import about, add_study_options, load_model
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
    """Declare the command's arguments."""
    from leapjax.studies.step_curves import NAMES

    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--grid", nargs="+", metavar="AXIS", help="axes of a grid, NAME=VALUES each")
    what.add_argument("--study", choices=NAMES, help="a question with settings of its own")
    add_study_options(
        parser,
        limit=100,
        limit_help="problems in all (default: 100)",
        seed=1,
        seed_help="of the problems (default: 1; `leapjax evaluate` has 0, so these are others)",
    )
    text = "keep answers, tables and plots there"
    parser.add_argument("--output", type=place, metavar="DIR", help=text)


def run(args: argparse.Namespace) -> int:
    """Carry the command out; see `leapjax.cli.common.command`."""
    from leapjax import tasks
    from leapjax.config.resolve import CANVAS, for_checkpoint
    from leapjax.options import set_flags
    from leapjax.studies import setting_grids, step_curves

    task = tasks.get(args.task)
    axes = [setting_grids.parse_axis(text) for text in args.grid or ()]
    given = set_flags(args, CANVAS)
    for axis in axes:
        if axis.name in given:
            flag = axis.name.replace("_", "-")
            raise UserError(f"--{flag} is set, and an axis of --grid too; keep one")
    base = for_checkpoint(given, None, args.model, task)
    if args.study:
        made = step_curves.study(args.study, base)
        configs = made.configs
    else:
        made = setting_grids.build(axes, base)
        configs = [point.config for point in made.points]
        note = f"{len(made.points)} points, {made.left_out} left out, {made.merged} merged"
        print(note, file=sys.stderr)
    problems = task.problems(args.split, args.strata, args.limit, args.seed)
    if args.output:
        note_plots("leapjax ablate")
    _write(args, ablate(args, task, problems, base, made, configs))
    return OK


def ablate(args: argparse.Namespace, task, problems, base, made, configs) -> dict[str, Any]:
    """Decode every setting and put the report together."""
    from leapjax.studies import ablation_report, runner

    batch_size = args.batch_size or runner.default_batch_size()
    lm = load_model(args, "leapjax ablate", args.model, base, batch_size)
    configs = list(dict.fromkeys([*(runner.greedy(c) for c in configs), *configs]))
    with counted(args.study or "grid", len(configs) * len(problems), "answer") as show:
        every = runner.decode_settings(
            lm,
            task,
            problems,
            configs,
            Path(args.output) if args.output else None,
            batch_size=batch_size,
            details=bool(args.study),
            show=show,
        )
    head = about(args, lm, task, problems, base, batch_size)
    if args.study:
        return head | ablation_report.study_report(made, every, base.end_ids)
    return head | ablation_report.grid_report(made, every)


def _write(args: argparse.Namespace, made: dict[str, Any]) -> None:
    from leapjax.studies import ablation_report as texts
    from leapjax.studies.files import write_all

    sys.stdout.write(texts.study_markdown(made) if args.study else texts.grid_markdown(made))
    sys.stdout.flush()
    if args.output:
        contents = texts.study_files(made) if args.study else texts.grid_files(made)
        names = write_all(Path(args.output), contents)
        print(f"{args.output}: {', '.join(names)}", file=sys.stderr)


main = command("ablate", add_arguments, run, DESCRIPTION, EPILOG)
