"""`leapjax evaluate`: accuracy and steps of every policy on a task, and which orderings hold."""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

from leapjax.cli import evaluate_rows
from leapjax.cli.common import OK, at_least, command, listed, note_plots, place
from leapjax.cli.study_arguments import about, add_study_options, load_model
from leapjax.errors import UserError
from leapjax.progress import counted

DESCRIPTION = """\
Solve a task's problems with every policy and compare accuracy with its 95 % interval, the
paired difference to greedy decoding, and steps, over the whole canvas and up to the first eos.
The text below the table names the orderings that hold at 95 %, and those that the answers
leave open.
"""

EPILOG = """\
examples:
  # A first look with the embedded model
  leapjax evaluate --limit 200

  # Before you claim that one policy beats another: wordings, problems, equal cost
  leapjax evaluate --limit 200 --templates 8 --seeds 5 --equal steps,time --output runs/claim

  # Two finished runs; refused if they differ in more than the policy
  leapjax evaluate --compare runs/claim runs/mine

  # The documentation's results; the same command resumes an interrupted run
  leapjax evaluate --limit 5000 --output runs/evaluation --markdown table.md

  # Stories that were kept out of training
  leapjax evaluate --split unseen --strata main,long --limit 1000

  # Your own file in GSM8K's form, with KV caches
  leapjax evaluate --model checkpoints/llada-8b --task gsm8k:test.jsonl --caches none,dual

  # Published rows: one, or all that model, data and machine allow (docs/paper-rows.md)
  leapjax evaluate --reproduce list
  leapjax evaluate --reproduce localleap-llada-gsm8k --model checkpoints/LLaDA-8B-Instruct \\
      --data-dir benchmarks --output runs/rows
  leapjax evaluate --reproduce all --model checkpoints/LLaDA-8B-Instruct \\
      --data-dir benchmarks --output runs/rows

policies:
  greedy      one token a step, the most probable first; the baseline, always run (cache none)
  schedule-2, schedule-4, schedule-8   a fixed 2, 4, 8 tokens a step
  threshold   every token with a probability of at least 0.9
  localleap   the paper's defaults

Illusions that the report guards against:
  one wording     --templates asks in several, and compares the policies' order under each
  one sample      --seeds draws more problems; intervals are clustered by problem, and Holm's
                  method corrects for the number of comparisons
  unequal cost    --equal finds, on separate problems, the threshold at which each policy needs
                  the reference's steps or time; the cost it reached is shown
  unequal runs    rows are compared only if model, dtype, canvas, cache, device, versions, batch
                  size, problems and templates are the same (--allow-unequal)
  a lenient parser   the strict parser's score is shown too
  broken text     shows answers with greedy's score whose text differs from greedy's

--output DIR gets report.json, outcomes.json (for --compare), plot.png and a file of answers per
policy. Answers are reused if model, options, versions and device are the same. --markdown writes
every column, stdout shows the main ones; docs/evaluation.md defines them.

exit status: 0 done, 2 bad input or options, runs that can't be compared, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from leapjax.caches import CACHES
    from leapjax.policies import ROWS
    from leapjax.studies.policy_rows import USUAL

    add_study_options(
        parser,
        limit=None,
        limit_help="problems per seed (default: 500; of a file, all)",
        seed=0,
        seed_help="seed of the problems (default: 0)",
    )
    add = parser.add_argument
    text = f"rows of the table, of {', '.join(ROWS)} (default: {','.join(USUAL)})"
    add("--policies", type=listed, default=list(USUAL), metavar="NAME,…", help=text)
    caches = f"{', '.join(CACHES)} (default: the model's own: none or block)"
    add("--caches", type=listed, metavar="NAME,…", help=caches)
    add("--output", type=place, metavar="DIR", help="keep answers, report.json and plot.png there")
    add("--markdown", type=place, metavar="FILE", help="write the tables as Markdown too")
    add = parser.add_argument_group("fair comparisons (docs/evaluation.md)").add_argument
    text = "ask each question in the task's first N wordings; unseen: in those never trained on "
    add("--templates", default="1", metavar="N", help=text + "(default: 1, the plain question)")
    seeds = "draws of problems, and of noise where a temperature is set (default: 1)"
    add("--seeds", type=at_least(1), default=1, metavar="K", help=seeds)
    text = "steps, time: more rows, with each policy at the reference's mean steps or seconds"
    add("--equal", type=listed, default=[], metavar="KIND,…", help=text)
    add("--reference", metavar="NAME", help="row for --equal (default: localleap, else the last)")
    tolerance = "relative difference up to which two costs count as equal (default: 0.05)"
    add("--tolerance", type=float, default=0.05, metavar="X", help=tolerance)
    text = "task to find thresholds on (default: the task's own split tune)"
    add("--tune-task", metavar="NAME", help=text)
    tune = "answers to try each setting on (default: 100)"
    add("--tune-limit", type=at_least(1), default=100, metavar="N", help=tune)
    text = "compare finished --output folders, without a new run"
    add("--compare", nargs="+", metavar="DIR", help=text)
    unequal = "compare rows that differ in more than the policy; the table's head names them"
    add("--allow-unequal", action="store_true", help=unequal)
    evaluate_rows.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Carry the command out; see `leapjax.cli.common.command`."""
    if args.reproduce:
        return evaluate_rows.run(args)
    evaluate_rows.refuse(args)
    if args.markdown and not Path(args.markdown).absolute().parent.is_dir():
        raise UserError(f"{args.markdown}: its folder is missing; create it first")
    if not 0 < args.tolerance < 1:
        raise UserError(f"--tolerance is {args.tolerance}; expected a share between 0 and 1")
    if args.output:
        note_plots("leapjax evaluate")
    _write(args, *(_compared(args) if args.compare else _measured(args)))
    return OK


def _compared(args: argparse.Namespace) -> tuple[dict[str, Any], None]:
    from leapjax.studies import evaluation_report, outcomes

    if args.output and Path(args.output).absolute() in [Path(d).absolute() for d in args.compare]:
        raise UserError(f"--output {args.output}: is compared, and its report would be replaced")
    made = outcomes.merge(args.compare, args.allow_unequal)
    how = {"tolerance": args.tolerance, "allow_unequal": args.allow_unequal}
    return evaluation_report.report_of(*made.values(), **how), None


def _measured(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report, and the outcomes that `--compare` reads."""
    import numpy as np

    from leapjax import tasks
    from leapjax.caches import CACHES
    from leapjax.config import check_keys
    from leapjax.config.resolve import CANVAS, for_checkpoint
    from leapjax.options import set_flags
    from leapjax.studies import evaluation, evaluation_report, outcomes, runner
    from leapjax.studies.comparisons import manifest_of
    from leapjax.studies.policy_rows import rows as rows_of

    if not args.policies or args.caches == []:
        raise UserError("--policies and --caches need at least one name")
    check_keys(args.equal, "--equal", evaluation.KINDS, "kind")
    task = tasks.get(args.task)
    base = for_checkpoint(set_flags(args, CANVAS), None, args.model, task)
    rows = rows_of(args.policies, args.caches or [base.cache], base)
    places, split = evaluation.templates(task, args.templates), args.split or task.splits[0]
    draws = [
        task.problems(split, args.strata, args.limit, args.seed + k) for k in range(args.seeds)
    ]
    problems = list({p.id: p for draw in draws for p in draw}.values())
    trials = evaluation.trials(task, draws, places, base.temperature > 0)
    reference, tuning, source = None, [], ""
    if args.equal:
        reference = evaluation.reference(rows, args.reference)
        tuning, source = evaluation.tuning(task, args.tune_task, args.tune_limit, places, problems)
    batch_size = args.batch_size or runner.default_batch_size()
    # A row that stores keys and values needs the most memory.
    largest = max((row.config for row in rows), key=lambda config: CACHES[config.cache].stores)
    lm = load_model(args, "leapjax evaluate", args.model, largest, batch_size)
    folder = Path(args.output) if args.output else None

    def answers(trials, name: str, config) -> list[dict[str, Any]]:
        """In a stream of its own, so that the wall time is this setting's."""
        how: dict[str, Any] = {"batch_size": batch_size, "timed": True}
        with counted(name, len(trials), "answer") as how["show"]:
            return runner.decode_settings(lm, task, trials, [config], folder, **how)[config]

    searches = []
    for kind in args.equal:
        how = {"kind": kind, "reference": reference, "tolerance": args.tolerance}
        tried = functools.partial(answers, tuning, f"equal {kind}")
        found, told = evaluation.equal_rows(rows, tried, **how)
        rows, searches = [*rows, *found], [*searches, *told]
    made: list[dict[str, Any]] = [
        evaluation.described(row) | {"answers": answers(trials, row.label, row.config)}
        for row in rows
    ]
    shared = evaluation.manifest(lm, task, split, made[0]["answers"], batch_size)
    for row in made:
        row["manifest"] = manifest_of(shared, row["options"])
    encode = lm.codec.encode  # type: ignore[union-attr]  (load_model has checked it)
    lengths = [len(encode(p.answer, control=False)) for p in problems]
    head = about(args, lm, task, problems, base, batch_size)
    head["settings"] |= {"seeds": args.seeds, "tuning": source}
    head["answer_tokens_p99"] = int(np.quantile(lengths, 0.99, method="inverted_cdf"))
    how = {"tolerance": args.tolerance, "allow_unequal": args.allow_unequal}
    report = evaluation_report.report_of(head, made, searches, **how)
    return report, outcomes.document(head, made, searches)


def _write(args: argparse.Namespace, report: dict[str, Any], found: dict[str, Any] | None) -> None:
    from leapjax.studies import evaluation_plot, evaluation_report, files, outcomes, plots

    sys.stdout.write(evaluation_report.text(report))
    sys.stdout.flush()
    if args.markdown:
        files.write(Path(args.markdown), evaluation_report.markdown(report))
    if args.output:
        contents: dict[str, Any] = {"report.json": report}
        if found:
            contents[outcomes.FILE] = found
        contents["plot.png"] = evaluation_plot.rows_figure(report) if plots.available() else None
        files.write_all(Path(args.output), contents)


main = command("evaluate", add_arguments, run, DESCRIPTION, EPILOG)
