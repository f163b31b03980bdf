"""`leapjax plan`: does a decode fit on a TPU slice, and how fast should it be."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from leapjax.cli.common import OK, at_least, command, place
from leapjax.errors import UserError
from leapjax.progress import busy
from leapjax.studies.files import json_text, write

DESCRIPTION = """\
Compile the real decode program for a TPU slice that is not attached, and say what the TPU
compiler says: memory a device, collectives, time to compile; and what a roofline predicts.
Needs libtpu (pip install libtpu), which compiles on any Linux machine; no TPU.
"""

EPILOG = """\
examples:
  # Does LLaDA-8B fit on 8 v5e chips with 64 rows?
  leapjax plan --model llada-8b --topology v5e:2x4 --batch 64 --prompt-length 512 \\
      --gen-length 256 --cache dual

  # Which slice and mesh? From 1 to 64 chips of two kinds, 8 rows a chip
  leapjax plan --model llada-8b --sweep v5e,v6e --most-chips 64 --json sweep.json

  # A checkpoint's own shape, and a mesh of your choice
  leapjax plan --model checkpoints/mine --topology v6e:4x4 --mesh data=4,tensor=4

The tokens that a row commits in a step (--tokens-per-step) are your assumption: take it from
`leapjax evaluate` on your task. Speeds are a roofline's (docs/scaling.md): upper bounds.

Each mesh is compiled in a process of its own: if the compiler aborts, or takes longer than
--compile-timeout, a row says so and the next mesh is tried.

exit status: 0 something fits, 1 nothing does, 2 bad input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
      parser: of this command.
    """
    from leapjax.caches import CACHES

    add, count = parser.add_argument, at_least(1)
    add("--model", default="llada-8b", metavar="NAME", help="llada-8b, dream-7b, 100b or a folder")
    add("--topology", metavar="CHIP:SHAPE", help="v5e:2x4, v6e:16x16, v5p:2x2x2, 7x:2x2x1, …")
    add("--mesh", metavar="AXES", help="data=2,tensor=4 (default: the fastest that fits)")
    add("--batch", type=count, metavar="N", help="rows at once on the slice (default: 8 a chip)")
    add("--prompt-length", type=count, default=512, metavar="N", help="tokens (512)")
    add("--gen-length", type=count, default=256, metavar="N", help="canvas (256)")
    add("--block-length", type=count, default=32, metavar="N", help="block (32)")
    add("--cache", default="dual", choices=CACHES, help="KV cache (dual)")
    add("--policy", default="localleap", metavar="NAME", help="policy (localleap)")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="(bfloat16)")
    add("--refresh-group", type=count, metavar="N", help="rows that refresh at once (engine's own)")
    add("--tokens-per-step", type=float, default=4.0, metavar="X", help="assumed, a row (4)")
    add(
        "--sweep",
        nargs="?",
        const="v5e,v5p,v6e,7x",
        metavar="CHIP,…",
        help="compare slices of these kinds (all), and recommend one",
    )
    add("--chips", metavar="N,…", help="sizes of a sweep (all)")
    add("--tries", type=count, default=3, metavar="N", help="meshes compiled a slice at most (3)")
    add(
        "--compile-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds that compiling one mesh may take (600)",
    )
    add("--most-chips", type=count, default=256, metavar="N", help="of a sweep (256)")
    add(
        "--price",
        metavar="CHIP=X,…",
        help="of a chip and hour, to recommend the cheapest (default: the fewest chip-seconds)",
    )
    add("--markdown", action="store_true", help="print the table as Markdown")
    add(
        "--reuse",
        metavar="FILE",
        help="results of earlier compilations, added to; a stopped sweep goes on (default: in "
        "the cache folder, LEAPJAX_CACHE_DIR); off keeps none",
    )
    add("--json", type=place, metavar="FILE", help="write everything as JSON too")


def run(args: argparse.Namespace) -> int:
    """Carry the command out.

    Args:
      args: as `add_arguments` declares them.

    Returns:
      The exit status.

    Raises:
      UserError: bad input.
    """
    import jax

    from leapjax.config import DecodeConfig, check_keys
    from leapjax.planning import chips, models, search

    # Nothing runs: the host is enough, and asking for a TPU that is not there takes minutes.
    jax.config.update("jax_platforms", "cpu")
    if bool(args.topology) == bool(args.sweep):
        raise UserError("give either --topology CHIP:SHAPE or --sweep")
    if args.tokens_per_step < 1:
        raise UserError(f"--tokens-per-step is {args.tokens_per_step}; a step commits at least 1")
    if not args.compile_timeout > 0:
        raise UserError(f"--compile-timeout is {args.compile_timeout:g}; expected seconds, > 0")
    model = models.find(args.model)
    prices = _prices(args.price)
    if args.topology:
        where = [chips.parse(args.topology)]
    else:
        kinds = args.sweep.split(",")
        check_keys(kinds, "--sweep", chips.CHIPS, "chip")
        where = [s for kind in kinds for s in chips.slices(kind, args.most_chips)]
        if args.chips:
            where = [s for s in where if str(s.chips) in args.chips.split(",")]
        if not where:
            raise UserError("--sweep: no slice is left; give more --chips or --most-chips")
    work = search.Workload(
        model=model,
        config=DecodeConfig(
            policy=args.policy,
            gen_length=args.gen_length,
            block_length=args.block_length,
            cache=args.cache,
        ),
        prompt_length=args.prompt_length,
        dtype=args.dtype,
        batch=args.batch,
        refresh_group=args.refresh_group,
        tokens_per_step=args.tokens_per_step,
    )
    store = search.Store(_store_path(args.reuse))
    plans, told = [], set()
    for number, one in enumerate(where, 1):
        with busy(f"slice {one}, {number} of {len(where)}"):
            plan = search.plan(work, one, _tries(args, work, one), store, args.compile_timeout)
        if not plans:  # not above an error
            _print(_MARKDOWN if args.markdown else _HEADING)
        plans.append(plan)
        for error in _without_answer(plan):
            if error not in told:
                _print(f"| {one} | {error} |" if args.markdown else f"{str(one):<11} {error}")
            told.add(error)
        _print(_row(plan) if args.markdown else _line(plan))
    best = search.recommend(plans, prices)
    if args.topology:
        if "total" in plans[0]:
            _print("\n" + "\n".join(_details(plans[0])))
    elif best is not None:
        cost = "price" if prices else "chip-seconds"
        _print(f"\nLeast {cost} a token: {best['topology']} with --mesh {best['mesh']}")
    if args.json:
        write(Path(args.json), json_text({"arguments": vars(args), "plans": plans}))
    return OK if best is not None else 1


def _tries(args: argparse.Namespace, work, where) -> list:
    """The mesh that was asked for, or the fastest few by the roofline."""
    from leapjax.planning import search
    from leapjax.sharding import parse

    if not args.mesh:
        return search.meshes(work, where)[: args.tries]
    mesh = parse(args.mesh)
    if mesh.devices != where.devices:
        raise UserError(
            f"--mesh {args.mesh} has {mesh.devices} devices, {where} has {where.devices}"
        )
    return [mesh]


def _store_path(text: str | None) -> Path | None:
    from leapjax.compilation import cache_folder

    if text == "off":
        return None
    folder = cache_folder()
    return Path(text) if text else folder and folder / "plans.jsonl"


def _prices(text: str | None) -> dict[str, float]:
    out = {}
    for part in text.split(",") if text else ():
        name, _, number = part.partition("=")
        try:
            out[name.strip()] = float(number)
        except ValueError:
            raise UserError(f"--price {part!r}: expected a chip and a number, v5e=1.2") from None
    return out


_HEADING = (
    f"{'slice':<11} {'mesh':<24} {'rows':>5} {'GB a device':>12} {'of':>6} {'step ms':>8} "
    f"{'bound by':<9} {'tokens/s/chip':>13} {'compile s':>9}"
)


def _line(plan: dict[str, Any]) -> str:
    start = f"{plan['topology']:<11} {plan.get('mesh', ''):<24} "
    if "total" not in plan:
        return start + _why(plan)
    used, has = plan["total"] / 1e9, plan["hbm_device"] / 1e9
    text = start + f"{plan['rows_a_replica']:>5} {used:>12.1f} {has:>6.1f} "
    if not plan["fits"]:
        return text + "does not fit"
    return text + (
        f"{1000 * plan['step_s']:>8.1f} {plan['window_pass']['bound']:<9} "
        f"{plan['tokens_per_s_chip']:>13.0f} {plan['compile_s']:>9.0f}"
    )


def _why(plan: dict[str, Any]) -> str:
    return plan.get("error", "does not fit: weights and cache alone are more than it has")


_MARKDOWN = (
    "| slice | mesh | rows a replica | weights + cache + rest, GB a device | of | window pass ms "
    "| full pass ms | step ms | bound by | tokens/s a chip | compiled in, CPU s |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|---|--:|--:|"
)


def _row(plan: dict[str, Any]) -> str:
    if not plan["fits"]:
        return f"| {plan['topology']} | {_why(plan)} |"
    rest = plan["total"] - plan["weights"] - plan["cache"]
    parts = " + ".join(f"{x / 1e9:.1f}" for x in (plan["weights"], plan["cache"], rest))
    return (
        f"| {plan['topology']} | {plan['mesh']} | {plan['rows_a_replica']} | {parts} "
        f"| {plan['hbm_device'] / 1e9:.0f} | {1000 * plan['window_pass']['seconds']:.1f} "
        f"| {1000 * plan['full_pass']['seconds']:.1f} | {1000 * plan['step_s']:.1f} "
        f"| {plan['window_pass']['bound']} | {plan['tokens_per_s_chip']:.0f} "
        f"| {plan['compile_cpu_s']:.0f} |"
    )


def _without_answer(plan: dict[str, Any]) -> list[str]:
    """Of meshes where the compiler aborted or took too long, unless the plan's row says it."""
    errors = [failed["error"] for failed in plan["failed"] if failed["ended"]]
    return [error for error in errors if error != plan.get("error")]


def _details(plan: dict[str, Any]) -> list[str]:
    parts = ("weights", "cache", "state", "temporaries")
    lines = [
        "memory a device: "
        + ", ".join(f"{name} {plan[name] / 1e9:.2f} GB" for name in parts)
        + f"; {plan['donated'] / 1e9:.2f} GB of cache and state are donated",
    ]
    for kind, count in sorted(plan["collectives"].items()):
        lines.append(f"{kind}: {count['in_loop']} inside the loop, {count['outside']} outside")
    if not plan["collectives"]:
        lines.append("no collectives")
    for name in ("window_pass", "full_pass"):
        t = plan[name]
        lines.append(
            f"{name.replace('_', ' ')}: compute {1000 * t['compute']:.2f} ms, memory "
            f"{1000 * t['memory']:.2f} ms, exchange {1000 * t['exchange']:.2f} ms"
        )
    return lines


def _print(text: str) -> None:
    print(text, flush=True)


main = command("plan", add_arguments, run, DESCRIPTION, EPILOG)
