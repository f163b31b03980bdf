"""`leapjax calibrate`: the fastest setting whose answers agree with greedy's."""

import argparse
import sys
from pathlib import Path
from typing import Any

from leapjax.cli.common import (
    OK,
    add_canvas_options,
    add_model_options,
    at_least,
    command,
    place,
)
from leapjax.cli.study_arguments import add_strata, load_model
from leapjax.errors import UserError
from leapjax.progress import counted

NONE_QUALIFIES = 1

DESCRIPTION = """\
Find the setting with the fewest steps whose answers agree with greedy decoding's.

Representative prompts are decoded greedily, then under one setting after another, from safe
to fast. The test stops at the first setting whose share of differing answers can't be shown
to be within the budget. With probability 0.95 (--confidence) over the choice of prompts, the
chosen setting differs from greedy on at most --max-disagreement of all prompts.
"""

EPILOG = """\
examples:
  # Your own prompts; two answers agree if their texts are the same
  leapjax calibrate --model checkpoints/llada-8b --prompts calib.jsonl \\
      --max-disagreement 0.01 --output runs/calibration
  leapjax decode --config runs/calibration/calibrated.yaml --input prompts.jsonl

  # Word problems, the embedded model; answers agree if their final numbers are the same
  leapjax calibrate --task wordproblems --limit 1000 --output runs/calibration

  # Settings of your own, from safe to fast
  leapjax calibrate --prompts calib.jsonl --ladder ladder.yaml --output runs/calibration

  # Check its promise with 200 calibrations on random halves of 2,000 problems
  leapjax calibrate --task wordproblems --limit 2000 --check-promise 200 --output runs/promise

files in --output:
  calibrated.yaml   the chosen setting, for leapjax decode --config; absent if none qualifies
  report.json       every setting that was tested, model, versions
  promise.json      with --check-promise, instead of these two
  answers-*.jsonl   answers as they finish: the same command resumes an interrupted run

exit status: 0 a setting is chosen (or the promise is kept), 1 none qualifies (or the promise is
broken), 2 bad input or options, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from leapjax.caches import CACHES

    add_model_options(parser.add_argument_group("model"), batch_size=at_least(1))

    group = parser.add_argument_group("prompts")
    add = group.add_argument
    add("--prompts", metavar="PATH", help="JSONL records without options; - is stdin")
    text = "compare extracted answers: wordproblems, gsm8k:PATH; no --prompts: decode its problems"
    add("--task", metavar="NAME", help=text)
    add("--split", metavar="NAME", help="split of the task's problems")
    add_strata(group)
    limit = "prompts in all (default: all of the file, or the task's number)"
    add("--limit", type=at_least(1), metavar="N", help=limit)
    seed = "seed of problems and draws (default: 0)"
    add("--seed", type=at_least(0), default=0, metavar="S", help=seed)
    add("--raw", action="store_true", help="no chat template; control tokens are parsed")
    add("--stop", action="append", metavar="TEXT", help="cut answers before this text")

    add = parser.add_argument_group("calibration").add_argument
    text = "share of answers that may differ from greedy's (default: 0.01)"
    add("--max-disagreement", type=float, default=0.01, metavar="X", help=text)
    add("--confidence", type=float, default=0.95, metavar="X", help="see above (default: 0.95)")
    add("--ladder", metavar="FILE", help="YAML of settings, safest first (default: LocalLeap's)")
    text = "calibrate R times on random subsets of the prompts and count the failures"
    add("--check-promise", type=at_least(1), metavar="R", help=text)
    text = "with --check-promise: prompts per calibration (default: half)"
    add("--calibration-size", type=int, metavar="N", help=text)

    group = parser.add_argument_group("decoding, the same for every setting")
    add = group.add_argument
    add("--config", metavar="FILE", help="YAML of further options, none of them a policy's")
    add_canvas_options(group)
    add("--cache", choices=CACHES, help="KV cache of the settings; greedy runs without one")

    add = parser.add_argument_group("output").add_argument
    add("--output", type=place, required=True, metavar="DIR", help="folder for the results")
    add("--overwrite", action="store_true", help="replace results; answers are kept")


def run(args: argparse.Namespace) -> int:
    """Carry the command out; see `leapjax.cli.common.command`."""
    from leapjax import tasks
    from leapjax.options import read_config
    from leapjax.records import Intake
    from leapjax.studies import calibration, files, ladders, runner

    file = read_config(args.config) if args.config else None
    model = args.model or (file.model if file else None)
    ladder = ladders.read(args.ladder) if args.ladder else ladders.DEFAULT
    task = tasks.get(args.task) if args.task else None
    base = _base(args, file, model, task)
    settings = ladder.configs(base)
    if args.prompts:
        records, source = runner.read_records(args.prompts, args.limit), args.prompts
        for record in records:
            if record.get("options"):
                where = f"{args.prompts}: record {record['id']}"
                raise UserError(f"{where} has options, but the ladder sets them; remove them there")
    elif task:
        problems = task.problems(args.split, args.strata, args.limit, args.seed)
        records = [task.record(p) for p in problems]
        source = f"{task.name}, split {args.split or task.splits[0]}, seed {args.seed}"
    else:
        raise UserError("no prompts; give --prompts FILE or --task NAME")
    n = _calibration_size(args, len(records))
    calibration.check_size(n, args.max_disagreement, args.confidence)
    folder = Path(args.output)
    names = ("promise.json",) if args.check_promise else ("calibrated.yaml", "report.json")
    files.prepare(folder, names, args.overwrite)
    batch_size = args.batch_size or runner.default_batch_size()
    lm = load_model(args, "leapjax calibrate", model, settings[0], batch_size)
    intake = Intake(base, lm.config, lm.codec, raw=args.raw, stop=tuple(args.stop or ()))
    requests = [r for i, record in enumerate(records, 1) for r in intake.requests(record, i)]
    facts = {
        "model": "embedded" if model is None else model,
        "model hash": lm.model_hash,
        "dtype": lm.dtype,
        "quantization": lm.quantization,
        "device": runner.device_name(),
        "versions": runner.versions(),
        "source": source,
        "agreement": f"the extracted answer ({task.name})" if task else "the text",
        "ladder": ladder.name,
    }
    goal: dict[str, Any] = {"budget": args.max_disagreement, "confidence": args.confidence}
    with counted("greedy", len(requests), "prompt") as count:
        how = {"batch_size": batch_size, "task": task, "show": lambda name, n: count(n, name)}
        comparison = calibration.Comparison(lm, requests, base, folder, **how)
        if not args.check_promise:
            return _write(folder, calibration.calibrate(comparison, settings, **goal), facts)
        draws = {"n": n, "repeats": args.check_promise, "seed": args.seed}
        outcome = calibration.check_guarantee(comparison, settings, **draws, **goal)
    return _write_guarantee(folder, settings, outcome, goal, facts)


def _base(args: argparse.Namespace, file, model: str | None, task):
    """Options that every setting has."""
    from leapjax.config.resolve import CANVAS, for_checkpoint
    from leapjax.options import set_flags
    from leapjax.policies import PARAMETERS

    for name in ("policy", *PARAMETERS):
        if file and name in file.options:
            raise UserError(f"{args.config}: {name} is the ladder's to set; remove it")
    base = for_checkpoint(set_flags(args, (*CANVAS, "cache")), file, model, task)
    if base.temperature > 0:
        raise UserError(f"temperature is {base.temperature}; only answers without noise can agree")
    return base


def _calibration_size(args: argparse.Namespace, pool: int) -> int:
    if args.check_promise is None:
        if args.calibration_size is not None:
            raise UserError("--calibration-size goes with --check-promise")
        return pool
    n = pool // 2 if args.calibration_size is None else args.calibration_size
    if not 1 <= n <= pool:
        raise UserError(f"--calibration-size is {n}; expected 1 to {pool}, the number of prompts")
    return n


def _write_guarantee(folder: Path, settings, outcome, goal: dict, facts: dict) -> int:
    from leapjax.studies import calibration_report, files

    promise, rival = outcome
    budget = goal["budget"]
    sys.stdout.write(calibration_report.guarantee_text(promise, settings, rival, budget))
    content = facts | {
        "max_disagreement": budget,
        "confidence": goal["confidence"],
        "settings": [c.to_dict() for c in settings],
        "promise": promise,
        "threshold_0.9": rival,
    }
    files.write(folder / "promise.json", content)
    return OK if promise["holds"] else NONE_QUALIFIES


def _write(folder: Path, made: dict[str, Any], facts: dict[str, Any]) -> int:
    from leapjax.studies import calibration_report, files

    sys.stdout.write(calibration_report.text(made))
    sys.stdout.flush()
    files.write(folder / "report.json", calibration_report.document(made, facts))
    target = folder / "calibrated.yaml"
    if made["chosen"] is None:
        target.unlink(missing_ok=True)  # an older result's, which --overwrite gave up
        return NONE_QUALIFIES
    named = None if facts["model"] == "embedded" else facts["model"]
    files.write(target, calibration_report.config_file(made, facts, named))
    print(f"\nleapjax decode --config {target} …")
    return OK


main = command("calibrate", add_arguments, run, DESCRIPTION, EPILOG)
