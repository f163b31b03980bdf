"""`leapjax evaluate`: accuracy and steps of every policy on a task."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leapjax.cli import evaluate_rows
from leapjax.cli.common import MESH_HELP, OK, Parser, note_mesh, note_plots, place, run_main
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

  # A published row: expected against measured (docs/paper-rows.md)
  leapjax evaluate --reproduce list
  leapjax evaluate --reproduce localleap-llada-gsm8k --model checkpoints/llada-8b \\
      --data gsm8k/test.jsonl --shots gsm8k/train.jsonl --output runs/rows

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
    """Declare the command's arguments.

    Args:
      parser: of this command.
    """
    from leapjax.caches import CACHES
    from leapjax.config import QUANTIZATIONS
    from leapjax.evaluation.settings import USUAL
    from leapjax.policies import ROWS

    add = parser.add_argument
    add("--model", metavar="PATH_OR_ID", help="checkpoint (default: the one in the package)")
    add("--dtype", choices=("float32", "bfloat16"), help="compute type (default: as in decode)")
    add("--mesh", metavar="AXES", help=MESH_HELP)
    add("--quantize", choices=QUANTIZATIONS, help="round the matrices to 8 bits after loading")
    add(
        "--task",
        default="wordproblems",
        metavar="NAME",
        help="wordproblems, or gsm8k:PATH for JSONL of question and answer (wordproblems)",
    )
    add("--split", metavar="NAME", help="wordproblems: heldout or unseen (default: heldout)")
    add(
        "--strata",
        type=_listed,
        default=[],
        metavar="NAME,…",
        help="groups of problems, in equal parts (default: all)",
    )
    add(
        "--limit",
        type=int,
        metavar="N",
        help="problems in all (default: 500; of a file, all)",
    )
    add("--seed", type=int, default=0, metavar="S", help="of the problems (default: 0)")
    add(
        "--policies",
        type=_listed,
        default=list(USUAL),
        metavar="NAME,…",
        help=f"rows of the table, of {', '.join(ROWS)} (default: {','.join(USUAL)})",
    )
    add(
        "--caches",
        type=_listed,
        default=["none"],
        metavar="NAME,…",
        help=f"{', '.join(CACHES)} (default: none)",
    )
    add("--gen-length", type=int, metavar="N", help="canvas (default: the model's or the task's)")
    add("--block-length", type=int, metavar="N", help="block (default: the model's or the task's)")
    add("--batch-size", type=int, metavar="N", help="rows decoded at once")
    add("--output", type=place, metavar="DIR", help="keep answers, report.json and plot.png there")
    add("--markdown", type=place, metavar="FILE", help="write the tables as Markdown too")
    evaluate_rows.add_arguments(parser)


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
    if args.reproduce:
        return evaluate_rows.run(args)
    for name in ("data", "shots", "rows", "allow_code_execution"):
        if getattr(args, name):
            raise UserError(f"--{name.replace('_', '-')} is only read with --reproduce NAME")
    from leapjax import tasks
    from leapjax.compilation import enable_cache
    from leapjax.config.resolve import CANVAS, checkpoint_options, resolve
    from leapjax.evaluation import settings
    from leapjax.options import set_flags

    if not args.policies or not args.caches:
        raise UserError("--policies and --caches need at least one name")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; expected at least 1")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; expected at least 0")
    task = tasks.get(args.task)
    base = resolve(set_flags(args, CANVAS), None, checkpoint_options(args.model), task)
    rows = settings.rows(args.policies, args.caches, base)
    problems = task.problems(args.split, args.strata, args.limit, args.seed)
    for file in (args.markdown,):
        if file and not Path(file).absolute().parent.is_dir():
            raise UserError(f"{file}: its folder is missing; create it first")
    if args.output:
        note_plots("leapjax evaluate")
    enable_cache()
    report = evaluate(args, task, problems, rows)
    _write(args, report)
    return OK


def evaluate(args: argparse.Namespace, task, problems, rows) -> dict[str, Any]:
    """Run every row and put the report together."""
    import jax

    from leapjax.caches import CACHES
    from leapjax.evaluation import report, runner
    from leapjax.evaluation.results import Results
    from leapjax.evaluation.statistics import percentile
    from leapjax.fit import wanted
    from leapjax.terminal.embedded import load

    batch_size = args.batch_size or runner.default_batch_size()
    # A row that stores keys and values needs the most room.
    largest = max((row.config for row in rows), key=lambda config: CACHES[config.cache].stores)
    mesh = wanted(args.mesh, largest, batch_size)
    lm = load(args.model, dtype=args.dtype, quantize=args.quantize, mesh=mesh)
    note_mesh("leapjax evaluate", args.mesh, lm)
    if lm.codec is None:
        raise UserError(f"{args.model}: has no tokenizer, so answers can't be read")
    folder = Path(args.output) if args.output else None
    answers = {}
    for row in rows:
        name = f"{row.policy}-{row.cache}"
        made = runner.row_settings(lm, row, batch_size)
        with (
            Results(folder, name, made) as results,
            counted(name, len(problems), "problem") as show,
        ):
            answers[row.key] = runner.run_row(
                lm, task, problems, row, results, batch_size=batch_size, show=show
            )
    base = rows[0].config
    return {
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
        "answer_tokens_p99": percentile(
            [len(lm.codec.encode(p.answer, control=False)) for p in problems], 0.99
        ),
        "model": {
            "name": "embedded" if args.model is None else Path(args.model).name,
            "hash": lm.model_hash,
            "dtype": lm.dtype,
            "quantization": lm.quantization,
        },
        "device": runner.device_name(),
        "backend": jax.default_backend(),
        "versions": runner.versions(),
        "definitions": report.DEFINITIONS,
        "rows": report.rows_of(problems, rows, answers),
    }


def _write(args: argparse.Namespace, report: dict[str, Any]) -> None:
    from leapjax.evaluation import plot
    from leapjax.evaluation import report as texts

    sys.stdout.write(texts.text(report))
    sys.stdout.flush()
    try:
        if args.markdown:
            Path(args.markdown).write_text(texts.markdown(report), encoding="utf-8")
        if args.output:
            folder = Path(args.output)
            (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"{e.filename}: can't be written ({e.strerror or e})") from e
    if args.output and plot.available():
        plot.draw(report, Path(args.output) / "plot.png")


def main(argv: Sequence[str] | None = None, prog: str = "leapjax evaluate") -> int:
    """Run `leapjax evaluate`; also the script `scripts/evaluate.py`.

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
