"""What the commands of studies share: options of a task, loading the model, facts of a report."""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leapjax.cli import common
from leapjax.cli.common import add_canvas_options, add_model_options, at_least, listed
from leapjax.errors import UserError

TASK_HELP = "wordproblems, dependency or one of its tasks, or gsm8k:PATH (wordproblems)"


def add_study_options(
    parser: argparse.ArgumentParser,
    *,
    limit: int | None,
    limit_help: str,
    seed: int,
    seed_help: str,
) -> None:
    """Declare model, task, problems and canvas of a study that solves a task's problems."""
    add_model_options(parser, batch_size=at_least(1))
    add = parser.add_argument
    add("--task", default="wordproblems", metavar="NAME", help=TASK_HELP)
    add("--split", metavar="NAME", help="wordproblems: heldout, unseen or tune (default: heldout)")
    add_strata(parser)
    add("--limit", type=at_least(1), default=limit, metavar="N", help=limit_help)
    add("--seed", type=at_least(0), default=seed, metavar="S", help=seed_help)
    add_canvas_options(parser)


def add_strata(parser: argparse._ActionsContainer) -> None:
    """Declare `--strata`."""
    text = "groups of problems, in equal numbers (default: all)"
    parser.add_argument("--strata", type=listed, default=[], metavar="NAME,…", help=text)


def load_model(args: argparse.Namespace, prog: str, model: str | None, config, batch_size: int):
    """Load the model of a study, on the devices that fit it.

    `config` has the decode options that need the most memory; model None is the embedded one.
    Returns an `LM` with a tokenizer.
    """
    from leapjax.compilation import enable_cache

    enable_cache()
    lm = common.load_model(args, prog, model, config, batch_size=batch_size)
    if lm.codec is None:
        raise UserError(f"{model}: has no tokenizer, so answers can't be read")
    return lm


def model_name(model: str | None) -> str:
    """How reports call a model."""
    return "embedded" if model is None else Path(model).name


def facts(args: argparse.Namespace, lm) -> dict[str, Any]:
    """The model, the device and the versions of a report.

    `lm` is None where it was not loaded.
    """
    from leapjax.ops import hardware
    from leapjax.studies import runner

    names = {"hash": "model_hash", "dtype": "dtype", "quantization": "quantization"}
    return {
        "model": {"name": model_name(args.model)}
        | {key: getattr(lm, name, None) for key, name in names.items()},
        "device": runner.device_name(),
        "backend": hardware.name(),
        "versions": runner.versions(),
    }


def about(
    args: argparse.Namespace, lm, task, problems: Sequence[Any], base, batch_size: int
) -> dict[str, Any]:
    """What was measured, and with what: the head of a report.

    `base` has the decode options that all settings share.
    """
    ids = "".join(f"{p.id}\n" for p in problems).encode()
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
        "problems_sha256": hashlib.sha256(ids).hexdigest(),
        **facts(args, lm),
    }
