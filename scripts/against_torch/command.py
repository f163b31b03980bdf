"""`leapjax benchmark --against torch`: leapjax and PyTorch decoders in turns."""

import argparse
import dataclasses

import jax
import numpy as np

from against_torch import comparison, tables
from against_torch.leapjax_side import Leapjax, weights
from leapjax.benchmarks import machine, models
from leapjax.benchmarks.report import Report
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig


def run(args: argparse.Namespace) -> int:
    """Compare with PyTorch, and print tables.

    Raises UserError: torch or transformers is not installed, or there is no such case or model.
    """
    report = Report(args, "benchmark against torch")
    names = (args.models or ("tiny" if args.quick else "embedded,60m")).split(",")
    rounds = 2 if args.quick else args.repeats
    pause = 0.0 if args.quick else comparison.PAUSE
    # Before the machine is measured, so that a missing torch is said at once.
    shapes = {name: weights(name) for name in names}
    sides = {n: opponents(*shape, quick=args.quick) for n, shape in shapes.items()}
    import torch

    torch.set_num_threads(report.found["threads"])
    measured = machine.measure(quick=args.quick)
    report.found["machine_measured"] = dataclasses.asdict(measured)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "numpy": np.__version__}
    report.show(tables.preamble(args.command, measured, versions, rounds, args.quick))
    batches = args.batches or ([1, 3] if args.quick else [1, 8])
    for name, (_, config) in shapes.items():
        report.found["models"][name] = []
        for case in comparison.cases(
            config, args.cases.split(","), batches, args.max_steps, args.quick
        ):
            rows = comparison.compare(case, config, sides[name], rounds, measured, pause=pause)
            report.found["models"][name].append(dataclasses.asdict(case) | {"rows": rows})
            report.show(f"**{tables.heading(models.title(name, config), case)}**")
            report.show(tables.text(case, rows))
            report.save()
    return 0


def opponents(params, config: ModelConfig, quick: bool) -> list[comparison.Implementation]:
    """Leapjax and everything that it is timed against.

    `quick`: don't try torch.compile, which takes minutes.
    """
    try:
        from against_torch.optimised import Fast
        from against_torch.plain import Plain
    except ImportError as e:
        if e.name not in ("torch", "transformers"):
            raise
        raise UserError(f"{e.name} is not installed; install leapjax[oracle] to compare") from e
    out: list[comparison.Implementation] = []
    for cache in ("none", "dual"):
        out.append(Leapjax(params, config, cache))
        out.append(Plain(params, config, cache))
        out.append(Fast(params, config, cache, compiled=not quick))
    return out
