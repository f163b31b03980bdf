"""`leapjax calibrate`: the fastest setting whose answers agree with greedy's."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leapjax.ablation.files import write_text
from leapjax.cli.common import OK, Parser, place, run_main
from leapjax.errors import UserError
from leapjax.progress import counted

NONE_QUALIFIES = 1

DESCRIPTION = """\
Find the setting with the fewest steps whose answers agree with greedy decoding's.

Prompts like those to come are decoded greedily and then under one setting after another,
from safe to fast, until the first whose share of differing answers can't be shown to be
within the budget. With probability 0.95 (--confidence) over the choice of prompts, the
setting that is chosen differs from greedy on at most --max-disagreement of all prompts.
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

  # Does it keep its promise? 200 calibrations on random halves of 2,000 problems
  leapjax calibrate --task wordproblems --limit 2000 --check-promise 200 --output runs/promise

files in --output:
  calibrated.yaml   the chosen setting, for leapjax decode --config; absent if none qualifies
  report.json       every setting that was tested, model, versions
  promise.json      with --check-promise, instead of the two
  answers-*.jsonl   answers as they come: the same command goes on after an interruption

exit status: 0 a setting is chosen (or the promise is kept), 1 none qualifies (or the promise is
broken), 2 bad input or options, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
      parser: of this command.
    """
    from leapjax.caches import CACHES
    from leapjax.config import QUANTIZATIONS

    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="PATH_OR_ID", help="checkpoint (default: the one in the package)")
    add("--dtype", choices=("float32", "bfloat16"), help="compute type (default: as in decode)")
    add("--mesh", metavar="AXES", help="devices to spread it over: data=2,tensor=4 (also fsdp)")
    add("--quantize", choices=QUANTIZATIONS, help="round the matrices to 8 bits after loading")
    add("--batch-size", type=int, metavar="N", help="rows decoded at once")

    add = parser.add_argument_group("prompts").add_argument
    add("--prompts", metavar="PATH", help="JSONL records without options; - is stdin")
    add(
        "--task",
        metavar="NAME",
        help="compare extracted answers: wordproblems, gsm8k:PATH; without --prompts, its problems",
    )
    add("--split", metavar="NAME", help="of the task's problems")
    add(
        "--strata",
        type=lambda text: [part.strip() for part in text.split(",") if part.strip()],
        default=[],
        metavar="NAME,…",
        help="groups of the task's problems, in equal parts (default: all)",
    )
    add("--limit", type=int, metavar="N", help="prompts in all (default: the file's, the task's)")
    add("--seed", type=int, default=0, metavar="S", help="of problems and draws (default: 0)")
    add("--raw", action="store_true", help="no chat template; control tokens are parsed")
    add("--stop", action="append", metavar="TEXT", help="cut answers before this text")

    add = parser.add_argument_group("calibration").add_argument
    add(
        "--max-disagreement",
        type=float,
        default=0.01,
        metavar="X",
        help="share of answers that may differ from greedy's (default: 0.01)",
    )
    add("--confidence", type=float, default=0.95, metavar="X", help="default: 0.95")
    add("--ladder", metavar="FILE", help="YAML of settings, safe to fast (default: LocalLeap's)")
    add(
        "--check-promise",
        type=int,
        metavar="R",
        help="calibrate R times on random parts of the prompts and count the failures",
    )
    add(
        "--calibration-size",
        type=int,
        metavar="N",
        help="prompts of each such calibration (default: half)",
    )

    add = parser.add_argument_group("decoding, the same for every setting").add_argument
    add("--config", metavar="FILE", help="YAML of further options, none of a policy's own")
    add("--gen-length", type=int, metavar="N", help="canvas (default: the model's or the task's)")
    add("--block-length", type=int, metavar="N", help="block (default: the model's or the task's)")
    add("--cache", choices=CACHES, help="KV cache of the settings; greedy has none")

    add = parser.add_argument_group("output").add_argument
    add("--output", type=place, required=True, metavar="DIR", help="folder of the results")
    add("--overwrite", action="store_true", help="replace results; answers are kept")


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
    from leapjax.calibration import calibrate, ladder, prompts
    from leapjax.compilation import enable_cache
    from leapjax.options import read_config

    file = read_config(args.config) if args.config else None
    model = args.model or (file.model if file else None)
    rungs = ladder.read(args.ladder) if args.ladder else ladder.DEFAULT
    task = tasks.get(args.task) if args.task else None
    base = _base(args, file, model, task)
    settings = rungs.configs(base)
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; expected at least 1")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit is {args.limit}; expected at least 1")
    if args.prompts:
        given = prompts.read(args.prompts, task, args.limit)
    elif task:
        given = prompts.generate(task, args.split, args.strata, args.limit, args.seed)
    else:
        raise UserError("no prompts; give --prompts FILE or --task NAME")
    n = _calibration_size(args, len(given.records))
    calibrate.check(n, args.max_disagreement, args.confidence)
    folder = Path(args.output)
    names = ("promise.json",) if args.check_promise else ("calibrated.yaml", "report.json")
    for name in names:
        if (folder / name).exists() and not args.overwrite:
            raise UserError(f"{folder / name}: is there already; add --overwrite to replace it")
    enable_cache()
    with _answers(args, model, given, base) as (answers, facts):
        facts |= {"source": given.source, "agreement": given.agreement, "ladder": rungs.name}
        if args.check_promise:
            return _check_promise(args, answers, base, settings, given.task, n, facts)
        result = calibrate.calibrate(
            answers,
            base,
            settings,
            budget=args.max_disagreement,
            confidence=args.confidence,
            extract=given.task.extract if given.task else None,
        )
    return _write(args, result, facts)


def _base(args: argparse.Namespace, file, model: str | None, task):
    """Options that every setting has."""
    from leapjax.config.resolve import CANVAS, checkpoint_options, resolve
    from leapjax.options import set_flags
    from leapjax.policies import PARAMETERS

    for name in ("policy", *PARAMETERS):
        if file and name in file.options:
            raise UserError(f"{args.config}: {name} is the ladder's to set; remove it")
    base = resolve(set_flags(args, (*CANVAS, "cache")), file, checkpoint_options(model), task)
    if base.temperature > 0:
        raise UserError(f"temperature is {base.temperature}; only answers without noise can agree")
    return base


def _calibration_size(args: argparse.Namespace, pool: int) -> int:
    if args.check_promise is None:
        if args.calibration_size is not None:
            raise UserError("--calibration-size goes with --check-promise")
        return pool
    if args.check_promise < 1:
        raise UserError(f"--check-promise is {args.check_promise}; expected at least 1")
    n = pool // 2 if args.calibration_size is None else args.calibration_size
    if not 1 <= n <= pool:
        raise UserError(f"--calibration-size is {n}; expected 1 to {pool}, the number of prompts")
    return n


@contextlib.contextmanager
def _answers(args: argparse.Namespace, model: str | None, given, base):
    """The prompts, ready to decode under a bar, and what identifies model and machine."""
    from leapjax.calibration.answers import Answers, requests_of
    from leapjax.evaluation import runner
    from leapjax.terminal.embedded import load

    lm = load(model, dtype=args.dtype, quantize=args.quantize, mesh=args.mesh)
    if lm.codec is None:
        raise UserError(f"{model}: has no tokenizer, so answers can't be compared")
    requests = requests_of(lm, given.records, base, args.raw, tuple(args.stop or ()))
    with counted("greedy", len(requests), "prompt") as show:
        facts: dict[str, Any] = {
            "model": "embedded" if model is None else model,
            "model hash": lm.model_hash,
            "dtype": lm.dtype,
            "quantization": lm.quantization,
            "device": runner.device_name(),
            "versions": runner.versions(),
        }
        batch = args.batch_size or runner.default_batch_size()
        yield (
            Answers(lm, requests, Path(args.output), batch, lambda name, done: show(done, name)),
            facts,
        )


def _check_promise(args, answers, base, settings, task, n: int, facts: dict) -> int:
    """Decode the pool under every setting, then calibrate on random parts of it."""
    import numpy as np

    from leapjax.calibration import calibrate, promise, report
    from leapjax.calibration.prompts import answer_key

    extract = task.extract if task else None
    keys = [answer_key(extract, a.text) for a in answers.all(calibrate.greedy(base), "greedy")]

    def compared(config, name: str) -> tuple[list[bool], list[int]]:
        found = answers.all(config, name)
        differ = [answer_key(extract, a.text) != k for a, k in zip(found, keys, strict=True)]
        return differ, [a.steps for a in found]

    under = [compared(c, f"setting-{i:02d}") for i, c in enumerate(settings, 1)]
    threshold = base.replace(policy="confidence_threshold", threshold=0.9)
    differ, steps = compared(threshold, "threshold-0.9")
    rival = report.Rival(float(np.mean(steps)), float(np.mean(differ)))
    outcome = promise.resample(
        np.array([d for d, _ in under]),
        np.array([s for _, s in under]),
        n=n,
        repeats=args.check_promise,
        budget=args.max_disagreement,
        confidence=args.confidence,
        seed=args.seed,
    )
    sys.stdout.write(report.promise_text(outcome, settings, rival, args.max_disagreement))
    content = facts | {
        "max_disagreement": args.max_disagreement,
        "confidence": args.confidence,
        "settings": [c.to_dict() for c in settings],
        "promise": outcome.to_dict(),
        "threshold_0.9": {"steps": rival.steps, "rate": rival.rate},
    }
    write_text(Path(args.output) / "promise.json", json.dumps(content, indent=1) + "\n")
    return OK if outcome.holds else NONE_QUALIFIES


def _write(args: argparse.Namespace, result, facts: dict) -> int:
    from leapjax.calibration import report

    folder = Path(args.output)
    sys.stdout.write(report.text(result))
    sys.stdout.flush()
    write_text(folder / "report.json", json.dumps(report.document(result, facts), indent=1) + "\n")
    target = folder / "calibrated.yaml"
    if result.chosen is None:
        target.unlink(missing_ok=True)  # an older result's, which --overwrite gave up
        return NONE_QUALIFIES
    named = None if facts["model"] == "embedded" else facts["model"]
    write_text(target, report.config_file(result, facts, named))
    print(f"\nleapjax decode --config {target} …")
    return OK


def main(argv: Sequence[str] | None = None, prog: str = "leapjax calibrate") -> int:
    """Run `leapjax calibrate`; also the script `scripts/calibrate.py`.

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
