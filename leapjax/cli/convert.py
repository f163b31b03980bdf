"""`leapjax convert`: hub checkpoints to leapjax checkpoints, and back."""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leapjax.cli.common import OK, command, human_bytes, peak_memory_gb, place
from leapjax.errors import UserError
from leapjax.progress import bar
from leapjax.wording import plural

DESCRIPTION = """\
Convert a hub checkpoint to a leapjax checkpoint, and back.

SRC is a hub id or a folder in the hub's format (config.json with *.safetensors or
pytorch_model*.bin). None of its code is executed, and torch is not needed. Weights
are streamed, so memory use stays small for any model size. DST appears whole or not
at all.
"""

EPILOG = """\
examples:
  # Fetch a model and convert it (16 GB down, 16 GB written)
  leapjax convert GSAI-ML/LLaDA-8B-Instruct checkpoints/llada-8b

  # Look before converting: names, shapes, index, disk space; reads no weights
  leapjax convert --check /models/Dream-v0-Instruct-7B

  # Compare every hash of a converted checkpoint with what is on disk
  leapjax convert --check checkpoints/llada-8b

  # Halve a float32 checkpoint
  leapjax convert --dtype bfloat16 /models/llada-f32 checkpoints/llada-bf16

  # Back to safetensors that the original PyTorch code loads, bit for bit
  leapjax convert --to-hub checkpoints/llada-8b /models/llada-8b-hub

The other commands also take a hub folder as --model. A converted checkpoint needs no
transposing at every start, and each device reads only its own part.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("src", metavar="SRC", help="hub folder or id; with --to-hub, a checkpoint")
    parser.add_argument(
        "dst", type=place, metavar="DST", nargs="?", help="folder to create (optional with --check)"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="store the weights in this type (default: as in SRC)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; check a hub folder's headers, or every hash of a checkpoint",
    )
    parser.add_argument(
        "--to-hub", action="store_true", help="SRC is a leapjax checkpoint: write a hub folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model folder at DST")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    from leapjax import converters
    from leapjax.checkpoint import is_checkpoint, refuse_existing, verify

    start = time.perf_counter()
    if args.dst is None and not args.check:
        raise UserError("DST is missing: which folder should be created?")
    if args.to_hub:
        if args.check or args.dtype or args.revision:
            raise UserError("--to-hub goes with neither --check, --dtype nor --revision")
        with _progress() as progress:
            report = converters.to_hub(
                args.src, args.dst, overwrite=args.overwrite, progress=progress
            )
    elif args.check and is_checkpoint(args.src):
        if args.dst or args.dtype or args.revision:
            raise UserError(f"{args.src}: is a leapjax checkpoint; --check takes nothing else then")
        with _progress() as progress:
            leaves = verify(args.src, progress).leaves
        count = sum(math.prod(shape) for shape, _ in leaves.values())
        dtypes = sorted({dtype.name for _, dtype in leaves.values()})
        print(
            f"{args.src}: a leapjax checkpoint of {count:,} parameters in {' and '.join(dtypes)}; "
            "every hash is right"
        )
        return OK
    elif args.check:
        src = converters.resolve(args.src, args.revision)
        report = converters.check(src, args.dst, dtype=args.dtype)
        print(_described(src, report))
        return OK
    else:
        refuse_existing(args.dst or "", args.overwrite)  # before a download, not after
        src = converters.resolve(args.src, args.revision)
        with _progress() as progress:
            report = converters.convert(
                src, args.dst, dtype=args.dtype, overwrite=args.overwrite, progress=progress
            )
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    seconds = time.perf_counter() - start
    print(
        f"{args.dst}: {report.family}, {report.param_count:,} parameters in {report.dtype}, "
        f"{human_bytes(report.target_bytes)} in {seconds:.1f} s, "
        f"peak memory {peak_memory_gb():.2f} GB"
    )
    return OK


def _described(src: Path, report) -> str:
    c = report.config
    experts = Counter()
    for run in c.runs:
        experts[run.experts] += run.n_layers
    dense = experts.pop(None, 0)
    mlp = f"MLP {c.mlp_hidden_size}"
    if experts:
        mlp = f"{mlp} in {plural(dense, 'layer')}" if dense else "no MLP"
    lines = [
        f"{src}: {report.family}, {report.param_count:,} parameters, complete",
        f"  shape   {c.n_layers} layers, width {c.d_model}, {c.n_heads} heads on "
        f"{c.n_kv_heads}, {mlp}, vocabulary {c.vocab_size}"
        + (f", blocks of {c.block_length}" if c.block_causal else ""),
        *(
            f"  experts {e.count} of width {e.hidden_size} in {plural(n, 'layer')}, {e.chosen} a "
            "token" + (f", and a shared one of width {e.shared_size}" if e.shared_size else "")
            for e, n in experts.items()
        ),
        f"  source  {report.tensors} tensors, {human_bytes(report.source_bytes)} in "
        f"{plural(len(report.files), 'file')}",
        f"  result  {report.dtype}, {human_bytes(report.target_bytes)} on disk",
        *(f"  note    {note}" for note in report.notes),
    ]
    return "\n".join(lines)


@contextmanager
def _progress() -> Iterator:
    """A byte counter on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with bar("weights", None, human_bytes, keep=False) as show:
        yield lambda done, total: show(done, note=f"of {human_bytes(total)}")


main = command("convert", add_arguments, run, DESCRIPTION, EPILOG)
