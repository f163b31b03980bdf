"""What a step costs, by canvas, batch and vocabulary, and a model of it fitted to that.

The model, for a pass over whole sequences without a cache:

    seconds = overhead + matrices / a + attention / b + head / c

with the FLOPs of `leapjax.planning.work.full_pass_flops` and four numbers that the machine
decides: seconds a step whatever its size, and the rates of the three kinds of products. They are
fitted by non-negative least squares to relative errors, so that short steps count as long ones.

    python scripts/timings/step_cost.py --write docs/performance.md
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from _options import add_options

from leapjax.benchmarks import models
from leapjax.benchmarks.report import Report
from leapjax.benchmarks.timing import spread, summarise, timed
from leapjax.benchmarks.workload import Case, stream
from leapjax.cli.common import command
from leapjax.models.config import ModelConfig
from leapjax.planning.work import full_pass_flops
from leapjax.progress import counted
from leapjax.studies.tables import markdown_table

TERMS = ("overhead", "matrices", "attention", "head")
PROMPT = 32  # tokens; one bucket
BLOCK = 32
STEPS = 2  # a block


@dataclasses.dataclass(frozen=True)
class Point:
    """A size of step."""

    gen_length: int  # canvas, tokens
    batch: int  # rows
    vocab_size: int  # of the model

    def terms(self, config: ModelConfig) -> list[float]:
        """What each of `TERMS` counts: steps, and FLOPs of each kind."""
        flops = full_pass_flops(config, self.batch, PROMPT + self.gen_length, BLOCK)
        return [1.0, *(flops[name] for name in TERMS[1:])]


def every_point(
    canvases: Sequence[int], batches: Sequence[int], vocabularies: Sequence[int]
) -> list[Point]:
    """Every combination, models one after the other."""
    return [Point(c, b, v) for v, c, b in itertools.product(vocabularies, canvases, batches)]


def measure(base: ModelConfig, points: Sequence[Point], repeats: int) -> Iterator[dict[str, Any]]:
    """Time a step of every size.

    `base`: the model's shape, but for the vocabulary; `repeats`: decodes of each, after one that
    compiles. Yields a row for each point: its fields, `terms`, and `seconds` of a step
    (`summarise`).
    """
    for vocabulary, some in itertools.groupby(points, lambda p: p.vocab_size):
        lm = models.random_lm(models.with_vocabulary(base, vocabulary))
        for point in some:
            case = Case("none", point.batch, PROMPT, point.gen_length, BLOCK, BLOCK // STEPS)
            engine, requests = lm.engine(point.batch), case.requests(lm.config)
            stream(engine, requests)
            steps = point.gen_length // case.tokens_per_step
            times = [timed(lambda e=engine, r=requests: stream(e, r)) for _ in range(repeats)]
            yield dataclasses.asdict(point) | {
                "terms": point.terms(lm.config),
                "seconds": summarise([t / steps for t in times]),
            }


def fit(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fit the model, and say how far off it is.

    Returns `overhead_s`, `rates` in FLOP/s by kind (None where its share came out as nothing), the
    `predicted` seconds of each row, and the median and largest relative error.
    """
    terms = np.array([row["terms"] for row in rows])
    seconds = np.array([row["seconds"]["median"] for row in rows])
    scale = terms.max(axis=0)
    found = _non_negative_fit(terms / scale / seconds[:, None])
    weights = found / scale
    predicted = terms @ weights
    errors = np.abs(predicted / seconds - 1)
    rates = {
        n: float(1 / w) if w > 0 else None for n, w in zip(TERMS[1:], weights[1:], strict=True)
    }
    return {
        "overhead_s": float(weights[0]),
        "rates": rates,
        "predicted": predicted.tolist(),
        "median_error": float(np.median(errors)),
        "largest_error": float(errors.max()),
    }


def _non_negative_fit(terms: np.ndarray) -> np.ndarray:
    """The weights >= 0 of few columns whose sum comes closest to 1 in every row.

    The best weights are the plain least-squares fit of those columns whose weight is above 0, so
    trying every set of columns finds them.
    """
    best, least = np.zeros(terms.shape[1]), np.inf
    for chosen in itertools.product([False, True], repeat=terms.shape[1]):
        weights = np.zeros(terms.shape[1])
        weights[[*chosen]] = np.linalg.lstsq(terms[:, [*chosen]], np.ones(len(terms)))[0]
        error = np.sum((terms @ weights - 1) ** 2)
        if (weights >= 0).all() and error < least:
            best, least = weights, error
    return best


def text(rows: Sequence[dict[str, Any]], fitted: dict[str, Any]) -> str:
    """Measured and predicted, as Markdown."""
    rates = ", ".join(
        f"{name} {rate / 1e9:.0f} GFLOP/s" if rate else f"{name} too small to tell"
        for name, rate in fitted["rates"].items()
    )
    cells = [("vocabulary", "canvas", "batch", "ms a step (range)", "model, ms", "off by")]
    for row, predicted in zip(rows, fitted["predicted"], strict=True):
        cells.append(
            (
                f"{row['vocab_size'] // 1000}k",
                f"{row['gen_length']}",
                f"{row['batch']}",
                spread(row["seconds"], 1, 1e3),
                f"{predicted * 1e3:.1f}",
                f"{predicted / row['seconds']['median'] - 1:+.0%}",
            )
        )
    return (
        f"Fitted: overhead {fitted['overhead_s'] * 1e3:.2f} ms a step; {rates}. "
        f"Relative error: median {fitted['median_error']:.1%}, "
        f"largest {fitted['largest_error']:.1%}.\n\n{markdown_table(cells, 0)}"
    )


def run(args: argparse.Namespace) -> int:
    """Time steps of all sizes, fit the model, and print both."""
    report = Report(args, "benchmark of cost")
    lengths, batches, words = (64, 128, 256, 512), args.batches or [1, 4, 16], (32_000, 128_000)
    if args.quick:
        lengths, batches, words = (32, 64), [1, 2], (1000, 2000)
    points = every_point(lengths, batches, words)
    rounds, rows = 2 if args.quick else args.repeats, []
    with counted("cost", len(points), "size") as shown:
        for row in measure(models.MODEL_60M, points, rounds):
            rows.append(row)
            shown(len(rows))
    fitted = fit(rows)
    report.found["cost"] = {"rows": rows} | fitted
    report.show(
        f"`{args.command}`: width 512, 8 layers, prompt {PROMPT}, block {BLOCK}, float32, "
        f"{report.found['threads']} threads, jax {report.found['jax']}; "
        f"medians of {rounds} decodes."
    )
    report.show(text(rows, fitted), end="")
    report.save()
    return 0


main = command("scripts/timings/step_cost.py", add_options, run, __doc__, prefix="python")
if __name__ == "__main__":
    sys.exit(main())
