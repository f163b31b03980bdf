"""`leapjax evaluate`: accuracy and steps of every policy on a task."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from leapjax.cli import evaluate_rows
from leapjax.cli.common import OK, command, listed, note_plots, place
from leapjax.cli.study_arguments import about, add_study_options, load_model
from leapjax.errors import UserError
from leapjax.progress import counted

DESCRIPTION = """\
Solve a task's problems with every policy and compare: accuracy with its 95 % interval, the
paired difference to greedy decoding, and steps, over the whole canvas and up to the first eos.
"""

EPILOG = """\
examples:
  # A first look with the embedded model
  leapjax evaluate --limit 200

  # What the documentation reports; an interrupted run goes on where it was
  leapjax evaluate --limit 5000 --output runs/evaluation --markdown table.md

  # Templates that were kept out of training
  leapjax evaluate --split unseen --strata main,long --limit 1000

  # Your own file in GSM8K's form, with KV caches
  leapjax evaluate --model checkpoints/llada-8b --task gsm8k:test.jsonl --caches none,dual

  # Published rows, one or all that model, data and machine allow (docs/paper-rows.md)
  leapjax evaluate --reproduce list
  leapjax evaluate --reproduce localleap-llada-gsm8k --model checkpoints/LLaDA-8B-Instruct \\
      --data-dir benchmarks --output runs/rows
  leapjax evaluate --reproduce all --model checkpoints/LLaDA-8B-Instruct \\
      --data-dir benchmarks --output runs/rows

policies:
  greedy      one token a step, the most probable first: the baseline, always run (cache none)
  schedule-2, schedule-4, schedule-8   a fixed 2, 4, 8 tokens a step
  threshold   every token at least 0.9 probable
  localleap   the paper's defaults

--output DIR gets report.json, plot.png and a file of answers per policy; answers are taken
up again where model, options, versions and device are the same. --markdown writes every
column, stdout the main ones; docs/evaluation.md defines them.

exit status: 0 done, 2 bad input or options, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from leapjax.caches import CACHES
    from leapjax.policies import ROWS
    from leapjax.studies.policy_rows import USUAL

    add_study_options(
        parser,
        limit=None,
        limit_help="problems in all (default: 500; of a file, all)",
        seed=0,
        seed_help="of the problems (default: 0)",
    )
    add = parser.add_argument
    add(
        "--policies",
        type=listed,
        default=list(USUAL),
        metavar="NAME,…",
        help=f"rows of the table, of {', '.join(ROWS)} (default: {','.join(USUAL)})",
    )
    caches = f"{', '.join(CACHES)} (default: the model's, none or block)"
    add("--caches", type=listed, metavar="NAME,…", help=caches)
    add("--output", type=place, metavar="DIR", help="keep answers, report.json and plot.png there")
    add("--markdown", type=place, metavar="FILE", help="write the tables as Markdown too")
    evaluate_rows.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Carry the command out; see `leapjax.cli.common.command`."""
    if args.reproduce:
        return evaluate_rows.run(args)
    evaluate_rows.refuse(args)
    from leapjax import tasks
    from leapjax.config.resolve import CANVAS, for_checkpoint
    from leapjax.options import set_flags
    from leapjax.studies import policy_rows

    if not args.policies or args.caches == []:
        raise UserError("--policies and --caches need at least one name")
    task = tasks.get(args.task)
    base = for_checkpoint(set_flags(args, CANVAS), None, args.model, task)
    rows = policy_rows.rows(args.policies, args.caches or [base.cache], base)
    problems = task.problems(args.split, args.strata, args.limit, args.seed)
    if args.markdown and not Path(args.markdown).absolute().parent.is_dir():
        raise UserError(f"{args.markdown}: its folder is missing; create it first")
    if args.output:
        note_plots("leapjax evaluate")
    _write(args, evaluate(args, task, problems, rows))
    return OK


def evaluate(args: argparse.Namespace, task, problems, rows) -> dict[str, Any]:
    """Run every row and put the report together."""
    from leapjax.caches import CACHES
    from leapjax.studies import evaluation_report, runner
    from leapjax.studies.statistics import percentile

    batch_size = args.batch_size or runner.default_batch_size()
    # A row that stores keys and values needs the most memory.
    largest = max((row.config for row in rows), key=lambda config: CACHES[config.cache].stores)
    lm = load_model(args, "leapjax evaluate", args.model, largest, batch_size)
    folder = Path(args.output) if args.output else None
    answers = {}
    for row in rows:
        name, config = "-".join(row.key), row.config
        asked = [runner.Question(p.id, lm.request(task.record(p), config)) for p in problems]
        how: dict[str, Any] = {"batch_size": batch_size, "timed": True}
        with counted(name, len(problems), "problem") as how["show"]:
            made = runner.decode(lm, asked, folder, name, config.to_dict(), **how)
        answers[row.key] = runner.scored(task, problems, made)
    encode = lm.codec.encode  # type: ignore[union-attr]  (load_model has checked it)
    lengths = [len(encode(p.answer, control=False)) for p in problems]
    return about(args, lm, task, problems, rows[0].config, batch_size) | {
        "answer_tokens_p99": percentile(lengths, 0.99),
        "definitions": evaluation_report.DEFINITIONS,
        "rows": evaluation_report.rows_of(problems, rows, answers),
    }


def _write(args: argparse.Namespace, report: dict[str, Any]) -> None:
    from leapjax.studies import evaluation_plot, evaluation_report, files, plots

    sys.stdout.write(evaluation_report.text(report))
    sys.stdout.flush()
    if args.markdown:
        files.write(Path(args.markdown), evaluation_report.markdown(report))
    if args.output:
        figure = evaluation_plot.rows_figure(report) if plots.available() else None
        files.write_all(Path(args.output), {"report.json": report, "plot.png": figure})


main = command("evaluate", add_arguments, run, DESCRIPTION, EPILOG)
