"""`leapjax analyze`: the paper's observations, measured on any model."""

import argparse
import time
from pathlib import Path
from typing import Any

from leapjax.cli.common import (
    OK,
    add_canvas_options,
    at_least,
    command,
    listed,
    note_plots,
    place,
)
from leapjax.cli.study_arguments import TASK_HELP, model_name
from leapjax.errors import UserError
from leapjax.progress import counted

DESCRIPTION = """\
Decode prompts, replay every pass, and measure LocalLeap's assumptions: how long final
proposals wait for their commit, and how often an undecided position's proposal is its final
token, by its own confidence and by the distance to the nearest anchor.
"""

EPILOG = """\
examples:
  # The embedded model on its word problems: tables and figures
  leapjax analyze --limit 200 --output runs/observations

  # Your own model and prompts, with decode options from a YAML file
  leapjax analyze --model checkpoints/llada-8b --config configs/llada-8b-instruct.yaml \\
      --input prompts.jsonl --output runs/observations

--output DIR gets observations.json, observations.md (with definitions), three PNG figures
(they need matplotlib: pip install leapjax[plots]), and answers and measurements as they finish:
the same command resumes. Block-causal models, a KV cache, sampling, guidance,
and policies that take tokens back or change logits are refused: their passes
can't be rebuilt from the commit steps.

exit status: 0 done, 2 bad input or options, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from leapjax.policies import ROWS

    add = parser.add_argument
    add("--model", metavar="PATH_OR_ID", help="checkpoint (default: the one in the package)")
    add("--dtype", choices=("float32", "bfloat16"), help="compute type (default: as in decode)")
    add("--config", metavar="FILE", help="YAML of decode options")
    text = f"at most 4 of {', '.join(ROWS)} (default: greedy,localleap)"
    usual = ["greedy", "localleap"]
    add("--policies", type=listed, default=usual, metavar="NAME,…", help=text)
    add_canvas_options(parser)
    text = "confidence of an anchor, for the measurement only (default: 0.9)"
    add("--anchor-threshold", type=float, default=0.9, metavar="P", help=text)
    add("--task", metavar="NAME", help=TASK_HELP)
    add("--split", metavar="NAME", help="split of the task (default: its first)")
    add("--input", metavar="FILE", help="JSONL records instead of a task's problems")
    add("--limit", type=at_least(1), default=200, metavar="N", help="prompts (default: 200)")
    seed = "seed of the task's problems (default: 0)"
    add("--seed", type=at_least(0), default=0, metavar="S", help=seed)
    add("--batch-size", type=at_least(1), metavar="N", help="rows decoded at once")
    add("--output", type=place, required=True, metavar="DIR", help="folder of tables and figures")
    add("--overwrite", action="store_true", help="replace tables and figures; answers are kept")


def configs(args: argparse.Namespace) -> dict[str, Any]:
    """The decode options of each policy; those that can't be analysed are refused."""
    from leapjax import tasks
    from leapjax.config.resolve import CANVAS, for_checkpoint
    from leapjax.options import read_config, set_flags
    from leapjax.policies.names import row_names
    from leapjax.studies.observation_plots import MOST_POLICIES
    from leapjax.studies.observations import check
    from leapjax.trace.collect import config_for

    names = row_names(args.policies, "--policies")
    if not 1 <= len(names) <= MOST_POLICIES:
        raise UserError(f"--policies names {len(names)}; expected 1 to {MOST_POLICIES}")
    file = read_config(args.config) if args.config else None
    args.model = args.model or (file.model if file else None)
    task = tasks.get(args.task or "wordproblems") if args.input is None else None
    base = for_checkpoint(set_flags(args, CANVAS), file, args.model, task)
    out = {n: config_for(n, base) for n in names}
    for name, config in out.items():
        check(config, f"--policies {name}")
    return out


def prompts(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The records to decode, of a file or a task."""
    from leapjax import tasks
    from leapjax.studies.runner import read_records

    if args.input is None:
        task = tasks.get(args.task or "wordproblems")
        return [task.record(p) for p in task.problems(args.split, (), args.limit, args.seed)]
    if args.task or args.split:
        raise UserError("--input and --task exclude each other; give one of them")
    return read_records(args.input, args.limit)


def run(args: argparse.Namespace) -> int:
    """Carry the command out; see `leapjax.cli.common.command`."""
    from leapjax.compilation import enable_cache
    from leapjax.loader import load
    from leapjax.studies import files, observation_report, runner
    from leapjax.studies.observation_summary import summarise
    from leapjax.studies.observations import collect

    if not 0 <= args.anchor_threshold <= 1:
        raise UserError(f"--anchor-threshold is {args.anchor_threshold}; expected 0 to 1")
    wanted = configs(args)
    records = prompts(args)
    note_plots("leapjax analyze")
    folder = Path(args.output)
    files.prepare(folder, observation_report.FILES, args.overwrite)
    enable_cache()
    lm = load(args.model, dtype=args.dtype)
    if lm.codec is None and any("prompt_ids" not in r for r in records):
        raise UserError(f"{args.model}: has no tokenizer; give --input records of prompt_ids")
    made = {
        n: [lm.request(r, c, line=i) for i, r in enumerate(records, 1)] for n, c in wanted.items()
    }
    started, runs = time.perf_counter(), {}
    batch_size = args.batch_size or runner.default_batch_size()
    for name, requests in made.items():
        rows = len(requests)
        with counted(name, 2 * rows, "row") as count:  # each is decoded, then replayed

            def show(stage: str, done: int, name=name, rows=rows, count=count) -> None:
                count(done + rows * (stage == "replay"), f"{name}: {stage}")

            options = {"threshold": args.anchor_threshold, "batch_size": batch_size}
            runs[name] = summarise(collect(lm, requests, **options, folder=folder, show=show))
    config = next(iter(wanted.values()))
    source = args.input and Path(args.input).name
    report = {
        "command": args.command,
        "settings": {
            "model": model_name(args.model),
            "model_hash": lm.model_hash,
            "dtype": lm.dtype,
            "prompts": source or f"{args.task or 'wordproblems'}, seed {args.seed}",
            "gen_length": config.gen_length,
            "block_length": config.block_length,
            "anchor_threshold": args.anchor_threshold,
            "options": {n: c.to_dict() for n, c in wanted.items()},
            "seconds": round(time.perf_counter() - started, 1),
            "device": runner.device_name(),
            "versions": runner.versions(),
        },
        "definitions": observation_report.DEFINITIONS,
        "runs": runs,
    }
    for name in files.write_all(folder, observation_report.report_files(report)):
        print(folder / name)
    return OK


main = command("analyze", add_arguments, run, DESCRIPTION, EPILOG)
