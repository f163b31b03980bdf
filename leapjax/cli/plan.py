"""`leapjax plan`: does a decode fit on a TPU slice, and how fast should it be."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leapjax.cli.common import OK, Parser, run_main
from leapjax.errors import UserError

HELP = "does a decode fit on a TPU slice, and how fast should it be"

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

exit status: 0 something fits, 1 nothing does, 2 bad input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
      parser: of this command.
    """
    add = parser.add_argument
    add("--model", default="llada-8b", metavar="NAME", help="llada-8b, dream-7b, 100b or a folder")
    add("--topology", metavar="CHIP:SHAPE", help="v5e:2x4, v6e:16x16, v5p:2x2x2, 7x:2x2x1, …")
    add("--mesh", metavar="AXES", help="data=2,tensor=4 (default: the smallest replica that fits)")
    add("--batch", type=int, metavar="N", help="rows at once on the slice (default: 8 a chip)")
    add("--prompt-length", type=int, default=512, metavar="N", help="tokens (512)")
    add("--gen-length", type=int, default=256, metavar="N", help="canvas (256)")
    add("--block-length", type=int, default=32, metavar="N", help="block (32)")
    add("--cache", default="dual", choices=("none", "prefix", "dual"), help="KV cache (dual)")
    add("--policy", default="localleap", metavar="NAME", help="policy (localleap)")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="(bfloat16)")
    add("--refresh-group", type=int, default=4, metavar="N", help="rows that refresh at once (4)")
    add("--tokens-per-step", type=float, default=4.0, metavar="X", help="assumed, a row (4)")
    add(
        "--sweep",
        nargs="?",
        const="v5e,v5p,v6e,7x",
        metavar="CHIP,…",
        help="compare slices of these kinds (all), and recommend one",
    )
    add("--most-chips", type=int, default=256, metavar="N", help="of a sweep (256)")
    add(
        "--price",
        metavar="CHIP=X,…",
        help="of a chip and hour, to recommend the cheapest (default: the fewest chip-seconds)",
    )
    add("--json", metavar="FILE", help="write everything as JSON too")


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

    from leapjax.config import check_keys
    from leapjax.planning import chips, models

    # Nothing runs: the host is enough, and asking for a TPU that is not there takes minutes.
    jax.config.update("jax_platforms", "cpu")
    if bool(args.topology) == bool(args.sweep):
        raise UserError("give either --topology CHIP:SHAPE or --sweep")
    for name in ("prompt_length", "gen_length", "refresh_group", "most_chips"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected >= 1")
    if args.tokens_per_step < 1:
        raise UserError(f"--tokens-per-step is {args.tokens_per_step}; a step commits at least 1")
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch is {args.batch}; expected >= 1")
    model = models.find(args.model)
    prices = _prices(args.price)
    if args.topology:
        where = [chips.parse(args.topology)]
    else:
        kinds = args.sweep.split(",")
        check_keys(kinds, "--sweep", chips.CHIPS, "chip")
        where = [s for kind in kinds for s in chips.slices(kind, args.most_chips)]
    plans = []
    _print(_HEADING)
    for one in where:
        plan = plan_slice(args, model, one)
        plans.append(plan)
        _print(_line(plan))
    best = recommend(plans, prices)
    if args.topology:
        _print("")
        _print("\n".join(_details(plans[0])))
    elif best is not None:
        cost = "price" if prices else "chip-seconds"
        _print(f"\nleast {cost} a token: {best['topology']} with --mesh {best['mesh']}")
    if args.json:
        path = Path(args.json)
        try:
            path.write_text(json.dumps({"arguments": vars(args), "plans": plans}, indent=1) + "\n")
        except OSError as e:
            raise UserError(f"{path}: can't be written ({e.strerror or e})") from e
    return OK if best is not None else 1


def plan_slice(args: argparse.Namespace, model, where) -> dict[str, Any]:
    """Plan one slice: with the mesh that was asked for, else the smallest replica that fits.

    Args:
      args: the command's.
      model: the shape.
      where: the slice.

    Returns:
      JSON-ready: topology, mesh, memory, collectives, prediction; `fits`.
    """
    from leapjax.sharding import MeshShape, parse

    rows = args.batch or 8 * where.chips
    if args.mesh:
        shapes = [parse(args.mesh)]
        if shapes[0].devices != where.devices:
            raise UserError(
                f"--mesh {args.mesh} has {shapes[0].devices} devices, {where} has {where.devices}"
            )
    else:
        tensors = [2**i for i in range(9) if where.devices % 2**i == 0]
        # A replica can't be spread over more devices than there are heads to share out.
        tensors = [t for t in tensors if t <= model.n_heads]
        shapes = [
            MeshShape(where.devices // t, 1, t) for t in tensors if rows >= where.devices // t
        ]
        shapes = [
            s for s in shapes if _weights(model, s, args) < where.chip.hbm / where.chip.devices
        ]
    plan: dict[str, Any] = {"topology": str(where), "chips": where.chips, "fits": False}
    for shape in shapes:
        plan = _try(args, model, where, shape, rows)
        if plan["fits"]:
            break
    return plan


def _weights(model, shape, args) -> float:
    """Bytes of weights a device; what is beyond the chip need not be compiled."""
    from leapjax.planning.roofline import layer_weights

    size = 2 if args.dtype == "bfloat16" else 4
    tables = (1 if model.tie_embeddings else 2) * model.d_model * model.vocab_size
    return (layer_weights(model) + tables) * size / shape.replica


def _try(args, model, where, shape, rows: int) -> dict[str, Any]:
    from leapjax.config import DecodeConfig
    from leapjax.decoding import program_for
    from leapjax.engine import bucket
    from leapjax.planning import compiled, roofline

    config = DecodeConfig(
        policy=args.policy,
        gen_length=args.gen_length,
        block_length=args.block_length,
        cache=args.cache,
    )
    program = program_for(
        config,
        model,
        length=bucket(args.prompt_length) + args.gen_length,
        dtype=args.dtype,
        eot_token_id=None,
        refresh_group=0 if args.cache == "none" else args.refresh_group,
    )
    slots = -(-rows // shape.data)
    slots = -(-slots // shape.fsdp) * shape.fsdp
    out: dict[str, Any] = {
        "topology": str(where),
        "chips": where.chips,
        "mesh": str(shape),
        "rows_a_replica": slots,
        "fits": False,
    }
    print(f"compiling {where} {shape} …", file=sys.stderr, end="\r", flush=True)
    try:
        made = compiled.compile_for(where, shape, program, slots)
    except UserError as e:
        if "does not compile" not in str(e):
            raise
        return {**out, "error": str(e)}
    finally:
        print(" " * 70, file=sys.stderr, end="\r", flush=True)
    guess = roofline.predict(where.chip, shape, program, slots, args.tokens_per_step)
    kinds: dict[str, dict[str, int]] = {}
    for c in made.collectives:
        kind = kinds.setdefault(c.kind, {"in_loop": 0, "outside": 0})
        kind["in_loop" if c.in_loop else "outside"] += 1
    has = where.chip.hbm / where.chip.devices
    return {
        **out,
        "fits": made.total <= has,
        "hbm_device": int(has),
        "weights": made.weights,
        "state": made.state,
        "temporaries": made.temporaries,
        "total": made.total,
        "donated": made.donated,
        "compile_s": round(made.seconds, 1),
        "collectives": kinds,
        "window_pass": dataclasses.asdict(guess.window) | {"bound": guess.window.bound},
        "full_pass": dataclasses.asdict(guess.full) | {"bound": guess.full.bound},
        "step_s": guess.step,
        "tokens_per_s_chip": guess.tokens_per_s_chip,
    }


def recommend(plans: list[dict[str, Any]], prices: dict[str, float]) -> dict[str, Any] | None:
    """The plan whose tokens cost least, of those that fit.

    Args:
      plans: what was planned.
      prices: of a chip and hour by kind; empty counts every chip alike.
    """
    fitting = [p for p in plans if p["fits"]]
    if prices:
        fitting = [p for p in fitting if p["topology"].split(":")[0] in prices]

    def cost(plan):
        price = prices.get(plan["topology"].split(":")[0], 1.0)
        # Of equals the smallest slice: easiest to get.
        return round(price / plan["tokens_per_s_chip"], 9), plan["chips"]

    return min(fitting, key=cost, default=None)


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
        return start + plan.get("error", "does not fit: the weights alone are more than it has")
    used, has = plan["total"] / 1e9, plan["hbm_device"] / 1e9
    text = start + f"{plan['rows_a_replica']:>5} {used:>12.1f} {has:>6.1f} "
    if not plan["fits"]:
        return text + "does not fit"
    return text + (
        f"{1000 * plan['step_s']:>8.1f} {plan['window_pass']['bound']:<9} "
        f"{plan['tokens_per_s_chip']:>13.0f} {plan['compile_s']:>9.0f}"
    )


def _details(plan: dict[str, Any]) -> list[str]:
    if "total" not in plan:
        return []
    parts = ("weights", "state", "temporaries")
    lines = [
        "memory a device: "
        + ", ".join(f"{name} {plan[name] / 1e9:.2f} GB" for name in parts)
        + f"; {plan['donated'] / 1e9:.2f} GB of the state are donated",
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


def main(argv: Sequence[str] | None = None, prog: str = "leapjax plan") -> int:
    """Run `leapjax plan`; also the script `scripts/plan.py`.

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
