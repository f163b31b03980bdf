"""`leapjax ablate`: accuracy and steps over a grid of decode options."""

import argparse
import sys
from pathlib import Path
from typing import Any

from leapjax.cli.common import OK, command, note_plots, place
from leapjax.cli.study_arguments import about, add_study_options, load_model
from leapjax.errors import UserError
from leapjax.progress import counted

DESCRIPTION = """\
Solve a task's problems under many settings of a policy and compare accuracy, agreement with
greedy decoding and steps. Settings that differ only in per-row options share one stream and one
compiled program; each combination of policy, cache, canvas and block has a stream of its own.
"""

EPILOG = """\
examples:
  # LocalLeap's options: 6 x 3 x 3 values on 100 problems
  leapjax ablate --grid threshold=0.7:0.95:6 relaxed_threshold=0.5,0.65,0.8 radius=1,4,16 \\
    --limit 100 --output runs/ablation

  # With a structural axis, and with several policies (each takes the axes that it reads)
  leapjax ablate --grid threshold=0.8,0.9 block_length=16,32,64
  leapjax ablate --grid policy=localleap,placebo,confidence_threshold threshold=0.6:0.95:8

  # Which commits differ from greedy's, by their distance to the nearest anchor
  leapjax ablate --grid relaxed_threshold=0.55 radius=4,32 --commits --output runs/commits

In a grid, NAME=a,b,c lists values and NAME=a:b:n takes n values from a to b. Points whose
relaxed_threshold is above their threshold are left out and counted. The first two axes with
several values span the heat map; each combination of the others is a panel.

`leapjax evaluate --equal steps` compares policies at equal steps; docs/ablations.md says more.

--output DIR gets CSV, JSON, Markdown, plots (extra `plots`), and the answers as they finish: the
same command resumes, and another grid reuses the answers. The table goes to stdout.

exit status: 0 done, 2 bad input or options, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add, text = parser.add_argument, "axes of the grid, NAME=VALUES each"
    add("--grid", nargs="+", required=True, metavar="AXIS", help=text)
    text = "count the commits that differ from greedy's, for at most 8 points"
    add("--commits", action="store_true", help=text)
    add_study_options(
        parser,
        limit=100,
        limit_help="problems in all (default: 100)",
        seed=1,
        seed_help="seed of the problems (default: 1; `leapjax evaluate` has 0, so other problems)",
    )
    add("--output", type=place, metavar="DIR", help="keep answers, tables and plots there")


def run(args: argparse.Namespace) -> int:
    """Carry the command out; see `leapjax.cli.common.command`."""
    from leapjax import tasks
    from leapjax.config.resolve import CANVAS, for_checkpoint
    from leapjax.options import set_flags
    from leapjax.studies import ablation_report, setting_grids
    from leapjax.studies.ablation_plots import MOST_PANELS
    from leapjax.studies.files import write_all

    task = tasks.get(args.task)
    axes = [setting_grids.parse_axis(text) for text in args.grid]
    given = set_flags(args, CANVAS)
    for axis in axes:
        if axis.name in given:
            flag = axis.name.replace("_", "-")
            raise UserError(f"--{flag} is set, and an axis of --grid too; keep one")
    base = for_checkpoint(given, None, args.model, task)
    grid = setting_grids.build(axes, base)
    if args.commits and len(grid.points) > MOST_PANELS:
        raise UserError(f"--commits: {len(grid.points)} points are more than {MOST_PANELS}")
    note = f"{len(grid.points)} points, {grid.left_out} left out, {grid.merged} merged"
    print(note, file=sys.stderr)
    problems = task.problems(args.split, args.strata, args.limit, args.seed)
    if args.output:
        note_plots("leapjax ablate")
    report = ablate(args, task, problems, base, grid)
    sys.stdout.write(ablation_report.markdown(report))
    sys.stdout.flush()
    if args.output:
        names = write_all(Path(args.output), ablation_report.files(report))
        print(f"{args.output}: {', '.join(names)}", file=sys.stderr)
    return OK


def ablate(args: argparse.Namespace, task, problems, base, grid) -> dict[str, Any]:
    """Decode every setting and put the report together."""
    from leapjax.studies import ablation_report, runner

    batch_size = args.batch_size or runner.default_batch_size()
    lm = load_model(args, "leapjax ablate", args.model, base, batch_size)
    configs = [point.config for point in grid.points]
    configs = list(dict.fromkeys([*map(runner.greedy, configs), *configs]))
    folder = Path(args.output) if args.output else None
    how = {"batch_size": batch_size, "details": args.commits}
    with counted("grid", len(configs) * len(problems), "answer") as show:
        made = runner.decode_settings(lm, task, problems, configs, folder, **how, show=show)
    ends = base.end_ids if args.commits else None
    head = about(args, lm, task, problems, base, batch_size)
    return head | ablation_report.grid_report(grid, made, ends)


main = command("ablate", add_arguments, run, DESCRIPTION, EPILOG)
