"""`leapjax benchmark`: timings of this machine, in one run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leapjax.cli.common import Parser, run_main

PROG = "leapjax benchmark"

DESCRIPTION = """\
Times decoding on this machine: tokens/s by KV cache and batch, the share of time in which the
device waits for the host, and continuous refilling against lock-step batches.

Every row does the same work everywhere: random prompts, a fixed schedule. Settings alternate
within the run; medians of --repeats rounds are printed with their range. Timings of a machine
that does other things are noisy: look at ratios.

  leapjax benchmark                                  embedded model and a random one of 60M
  leapjax benchmark --models 60m --batches 1,8 --json bench.json
"""


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--models", default="embedded,60m", help="comma-separated: embedded, 60m, or paths"
    )
    parser.add_argument("--caches", default="none,prefix,dual", help="comma-separated")
    parser.add_argument("--batches", type=_numbers, default=[1, 8, 32], metavar="N,…")
    parser.add_argument("--prompt-length", type=int, default=32, metavar="N", help="tokens (32)")
    parser.add_argument("--gen-length", type=int, default=64, metavar="N", help="canvas (64)")
    parser.add_argument("--block-length", type=int, default=32, metavar="N", help="block (32)")
    parser.add_argument(
        "--tokens-per-step", type=int, default=4, metavar="N", help="the schedule's (4)"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (5)")
    parser.add_argument(
        "--engine-requests", type=int, default=64, metavar="N", help="of the engine's part (64)"
    )
    parser.add_argument(
        "--refresh-groups",
        type=_numbers,
        default=[1, 2, 4, 8],
        metavar="N,…",
        help="rows that may refresh their KV cache at once (1,2,4,8)",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON too")


def run(args: argparse.Namespace) -> int:
    """Measure, and print tables."""
    import jax

    from leapjax.benchmarks import decoding, models

    report: dict[str, Any] = {
        "jax": jax.__version__,
        "device": str(jax.devices()[0].device_kind),
        "machine": platform.machine(),
        "threads": len(os.sched_getaffinity(0)),
        "arguments": vars(args),
        "models": {},
    }
    for name in args.models.split(","):
        lm = models.by_name(name)
        part: dict[str, Any] = {"parameters": models.size(lm.config), "dtype": lm.dtype}
        print(f"\n{name}: {part['parameters'] / 1e6:.1f} M parameters, {lm.dtype}")
        print(
            f"prompt {args.prompt_length}, canvas {args.gen_length}, block {args.block_length}, "
            f"{args.tokens_per_step} tokens a step; median of {args.repeats} (range)"
        )
        settings = [
            decoding.Setting(
                cache,
                batch,
                args.prompt_length,
                args.gen_length,
                args.block_length,
                args.tokens_per_step,
            )
            for batch in args.batches
            for cache in args.caches.split(",")
        ]
        print(f"{'batch':>6} {'cache':>7} {'tokens/s':>10} {'ms/pass':>9} {'passes':>7}  seconds")
        part["throughput"] = []
        for row in decoding.throughput(lm, settings, args.repeats):
            part["throughput"].append(row)
            t = row["seconds"]
            print(
                f"{row['batch']:>6} {row['cache']:>7} {row['tokens_per_s']:>10.0f} "
                f"{row['ms_per_pass']:>9.2f} {row['passes']:>7}  "
                f"{t['median']:.3f} ({t['min']:.3f}-{t['max']:.3f})",
                flush=True,
            )
        part["engine"], part["host"] = [], []
        for cache in args.caches.split(","):
            gain = decoding.against_lock_step(lm, cache, 8, args.engine_requests, args.repeats)
            host = decoding.host_share(lm, cache, 8, args.engine_requests)
            part["engine"].append(gain)
            part["host"].append(host)
            t = gain["gain_in_time"]
            print(
                f"engine over lock-step, cache {cache}, 8 slots, 8x spread: "
                f"{gain['gain_in_passes']:.2f}x in passes, {t['median']:.2f}x in time "
                f"({t['min']:.2f}-{t['max']:.2f}); device idle {host['outside_device']:.1%}",
                flush=True,
            )
        part["refresh_groups"] = []
        for cache in (c for c in args.caches.split(",") if c != "none"):
            rows = decoding.refresh_groups(
                lm, cache, 8, args.refresh_groups, args.engine_requests, args.repeats
            )
            part["refresh_groups"] += rows
            for row in rows:
                t, ratio = row["seconds"], row["of_first"]
                print(
                    f"refresh_group {row['refresh_group']}, cache {cache}, 8 slots: "
                    f"{t['median']:.2f} s ({t['min']:.2f}-{t['max']:.2f}), "
                    f"{ratio['median']:.2f} of refresh_group {args.refresh_groups[0]}",
                    flush=True,
                )
        report["models"][name] = part
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1, default=str) + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `leapjax benchmark` and `scripts/benchmark.py`."""

    def command(argv: Sequence[str] | None) -> int:
        parser = Parser(prog=PROG, description=DESCRIPTION)
        add_arguments(parser)
        return run(parser.parse_args(argv))

    return run_main(command, argv, PROG)


if __name__ == "__main__":
    sys.exit(main())
