"""`leapjax train`: train or fine-tune a masked diffusion model, and export it."""

import argparse
import dataclasses

from leapjax.cli.common import INTERRUPTED, OK, at_least, command, place
from leapjax.errors import UserError
from leapjax.training.config import FIELDS, STRUCTURED, TrainConfig, make, read

DESCRIPTION = """\
Train a masked diffusion model, or fine-tune a checkpoint: bidirectional models with
LLaDA's objective, block-causal ones (SDAR, Fast-dLLM v2) with block diffusion's.

A run writes checkpoints and metrics.jsonl to its output folder. After Ctrl-C, SIGTERM
or a kill, the same command resumes from the newest checkpoint; the results are bit for
bit those of an uninterrupted run.
"""

EPILOG = """\
examples:
  # The model that ships with leapjax (hours on 2 CPU cores, in pieces of any length)
  leapjax train --config configs/train-wordproblems.yaml --output runs/wordproblems

  # Export its averaged weights as a model folder for --model
  leapjax train --export models/wordproblems --output runs/wordproblems

  # A small block-causal model of SDAR's kind
  leapjax train --config configs/train-wordproblems-block.yaml --output runs/block

  # Fine-tune a checkpoint on prompt/response, messages or text records
  leapjax train --init-from checkpoints/dream --data mine.jsonl --output runs/mine \\
      --steps 500 --learning-rate 1e-5 --prompt-length 256 --gen-length 256

The YAML file's keys are the options above and three structured ones: model (config.json keys;
model_type is llada, lladamoe, sdar or Fast_dLLM_Qwen), phases (which problems, and when) and
decode (options that suit the model, exported with it). Flags override the file.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of the options below")
    parser.add_argument(
        "--export",
        type=place,
        metavar="DIR",
        help="don't train: write the run's newest weights as a model folder",
    )
    parser.add_argument(
        "--dtype", default="bfloat16", help="with --export: bfloat16 (default) or float32"
    )
    parser.add_argument("--card", metavar="FILE", help="with --export: model card to include")
    parser.add_argument("--overwrite", action="store_true", help="with --export: replace DIR")
    parser.add_argument(
        "--until",
        type=at_least(1),
        metavar="STEP",
        help="save and stop after this step, to train in pieces",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXES",
        help="devices to shard the run over: data=2,fsdp=4 (also tensor); may change on resume",
    )
    group = parser.add_argument_group("the run")
    for field in dataclasses.fields(TrainConfig):
        if field.name in STRUCTURED:
            continue
        kind = FIELDS[field.name]
        shown = f" ({field.default})" if field.default not in ("", 0.0) else ""
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=place if field.name == "output" else kind,
            metavar={int: "N", float: "X", str: "S"}[kind],
            help=field.metadata["help"] + shown,
        )


def run(args: argparse.Namespace) -> int:
    """Carry the command out; 130 after Ctrl-C or SIGTERM (saved, resumable)."""
    values = read(args.config) if args.config else {}
    flags = {n: getattr(args, n) for n in FIELDS if n not in STRUCTURED}
    values |= {n: v for n, v in flags.items() if v is not None}
    if args.export:
        from leapjax.training.export import export

        output = values.get("output")
        if not isinstance(output, str) or not output:
            raise UserError("--export needs --output, the run's folder")
        step, digest = export(
            output, args.export, dtype=args.dtype, card=args.card, overwrite=args.overwrite
        )
        print(f"{args.export}: weights of step {step} in {args.dtype}, hash {digest[:12]}")
        return OK
    for name, value in (("--card", args.card), ("--overwrite", args.overwrite)):
        if value:
            raise UserError(f"{name} goes with --export")
    config = make(values, args.config or "options")
    from leapjax.compilation import enable_cache
    from leapjax.training.trainer import train

    enable_cache()
    result = train(config, lambda line: print(line, flush=True), until=args.until, mesh=args.mesh)
    if result.finished:
        print(f"done: {result.step} steps; --export DIR --output {config.output} makes a model")
        return OK
    return OK if args.until is not None and result.step >= args.until else INTERRUPTED


main = command("train", add_arguments, run, DESCRIPTION, EPILOG)
