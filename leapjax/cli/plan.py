"""`leapjax plan`: does a decode fit on a TPU slice, and how fast should it be."""

import argparse
from pathlib import Path

from leapjax.cli import plan_table
from leapjax.cli.common import OK, at_least, command, place
from leapjax.errors import UserError
from leapjax.progress import busy
from leapjax.studies.files import json_text, write

DESCRIPTION = """\
Compile the real decode program for a TPU slice that is not attached. Report what the program
uses (memory per device, bytes moved per pass, collectives) and its estimated speed. This needs
libtpu (pip install libtpu), which compiles on any Linux machine, but no TPU.
"""

EPILOG = """\
examples:
  # Does LLaDA-8B fit on 8 v5e chips with 64 rows?
  leapjax plan --model llada-8b --topology v5e:2x4 --batch 64 --prompt-length 512 \\
      --gen-length 256 --cache dual

  # Which chip, mesh, rows and weights? One row per mesh, replicas of up to 8 chips
  leapjax plan --model llada-8b --sweep v5e,v6e --most-chips 8 --json sweep.json

  # How much data does the compiled program move, and how much of that is waste?
  leapjax plan --topology v6e:2x4 --mesh data=8 --batch 64 --quantize none --audit

  # int8 weights on the cheapest slice there is
  leapjax plan --model llada-8b --topology v5e:1x1 --quantize int8

  # The shape of a checkpoint, and a mesh of your choice
  leapjax plan --model checkpoints/mine --topology v6e:4x4 --mesh data=4,tensor=4

  # Compile for this machine's devices, and save the programs for leapjax decode --programs DIR
  leapjax plan --model checkpoints/mine --prompt-length 128 --batch 8 --save programs

All replicas run the same program, and they exchange nothing: ten times the chips give ten times
the tokens/s. So a sweep has one row per mesh, on the smallest slice that holds a replica. It
searches rows per replica and the form of the weights, unless --batch and --quantize set them. It
prints the --mesh, --batch-size and --quantize to give to `leapjax decode`.

Counts come from the compiled program. Speeds are estimates: the engine's schedule is simulated,
and each pass takes the larger of the time by the compiler's cycles and the time by the bytes that
it moves (method: docs/scaling.md). The bound is a roofline. The number of tokens that a row commits
in a step (--tokens-per-step) is your assumption: measure it with `leapjax evaluate`.

Each program is compiled in its own process: if the compiler aborts or takes longer than
--compile-timeout, the row says so, and the next mesh is tried.

exit status: 0 something fits, 1 nothing does, 2 bad input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from leapjax.caches import CACHES
    from leapjax.config import QUANTIZATIONS
    from leapjax.planning.models import PRESETS

    add, count = parser.add_argument, at_least(1)
    shapes = f"{', '.join(PRESETS)} or a folder"
    add("--model", metavar="NAME", help=f"{shapes} (llada-8b)")
    add("--topology", metavar="CHIP:SHAPE", help="v5e:2x4, v6e:16x16, v5p:2x2x2, 7x:2x2x1, …")
    add("--mesh", metavar="AXES", help="data=2,tensor=4 (default: the fastest by a roofline)")
    add("--batch", type=count, metavar="N", help="rows at once on the slice (default: searched)")
    add("--prompt-length", type=count, default=512, metavar="N", help="in tokens (512)")
    add("--gen-length", type=count, metavar="N", help="canvas length (256)")
    add("--block-length", type=count, metavar="N", help="(32; block-causal: the model's)")
    add("--cache", choices=CACHES, help="KV cache (dual; if block-causal, decode's default)")
    add("--policy", metavar="NAME", help="policy (localleap)")
    add("--dtype", choices=("bfloat16", "float32"), help="(bfloat16)")
    add(
        "--quantize",
        metavar="FORM,…",
        help=f"forms of the weights to try: none, {', '.join(QUANTIZATIONS)} (all)",
    )
    add("--refresh-group", type=count, metavar="N", help="rows per refresh (engine's default)")
    add("--tokens-per-step", type=float, default=4.0, metavar="X", help="assumption, per row (4)")
    add(
        "--sweep",
        nargs="?",
        const="v5e,v5p,v6e,7x",
        metavar="CHIP,…",
        help="compare meshes of these chips (all) and recommend one",
    )
    add("--tries", type=count, default=3, metavar="N", help="most meshes per chip and form (3)")
    add(
        "--compile-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="limit, in seconds, for compiling one mesh (600)",
    )
    add("--most-chips", type=count, default=16, metavar="N", help="most chips per replica (16)")
    add(
        "--chip-hour",
        metavar="PRICE",
        help="price per chip-hour, 1.2 or v5e=1.2,v6e=2.7: recommend the cheapest and print what "
        "tokens cost (default: recommend the fewest chip-seconds)",
    )
    add("--records", type=count, metavar="N", help="job size: print its chip-hours and price")
    add(
        "--save",
        type=place,
        metavar="DIR",
        help="write the compiled programs for `leapjax decode --programs DIR`; without --topology, "
        "for this machine's devices. Whether a TPU loads its programs is untested",
    )
    add("--config", metavar="FILE", help="with --save: the run's options file")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add(
        "--reuse",
        metavar="FILE",
        help="file that keeps the results of compilations, so that a stopped sweep can resume "
        "(default: in the cache folder, LEAPJAX_CACHE_DIR); off keeps none",
    )
    add(
        "--audit",
        action="store_true",
        help="print the bytes that the fastest program moves next to those that it needs, by pass, "
        "and its most wasteful operations (docs/audit.md)",
    )
    add("--json", type=place, metavar="FILE", help="write everything as JSON too")


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    import jax

    from leapjax.cli import plan_save
    from leapjax.config import DecodeConfig
    from leapjax.planning import audit_report, candidates, models, search

    if args.config and not args.save:
        raise UserError("--config goes with --save DIR")
    if args.save:
        plan_save.check(args)
        if not args.topology:
            return plan_save.here(args)
    # Nothing runs: the host is enough, and asking for a TPU that is not there takes minutes.
    jax.config.update("jax_platforms", "cpu")
    if bool(args.topology) == bool(args.sweep):
        raise UserError("give either --topology CHIP:SHAPE or --sweep")
    if args.sweep and args.mesh:
        raise UserError("--sweep chooses meshes; give --mesh with --topology")
    if args.tokens_per_step < 1:
        raise UserError(f"--tokens-per-step is {args.tokens_per_step}; a step commits at least 1")
    if not args.compile_timeout > 0:
        raise UserError(f"--compile-timeout is {args.compile_timeout:g}; expected seconds, > 0")
    prices = _prices(args.chip_hour)
    model = models.find(args.model or "llada-8b")
    if args.save:
        config = plan_save.options(args, args.model)
    else:
        config = DecodeConfig(
            policy=args.policy or "localleap",
            gen_length=args.gen_length or 256,
            block_length=args.block_length,
            cache=args.cache or (None if model.block_causal else "dual"),
        )
    work = candidates.Workload(
        model=model,
        config=config.for_model(model),
        prompt_length=args.prompt_length,
        dtype=args.dtype or "bfloat16",
        batch=args.batch,
        refresh_group=args.refresh_group,
        tokens_per_step=args.tokens_per_step,
        quantize=_forms(args.quantize or ("none" if args.save else None)),
    )
    store = search.Store(_store_path(args.reuse))
    tries = _tries(args, work)
    plans = []
    show = plan_table.row if args.markdown else plan_table.line
    for number, one in enumerate(tries, 1):
        with busy(f"{one.where} with --mesh {one.mesh}, {number} of {len(tries)}"):
            plan = search.plan(work, one, store, args.compile_timeout)
        if not plans:  # not above an error
            _print(plan_table.MARKDOWN if args.markdown else plan_table.HEADING)
        plans.append(plan)
        _print(show(plan, work.dtype))
    best = search.recommend(plans, prices)
    if not tries:
        _print("does not fit: weights and cache alone are more than there is")
    elif best is not None:
        if not args.markdown:
            _print(f"\n{plan_table.LEGEND}")
        if len(plans) == 1 and not args.markdown:
            _print("\n" + "\n".join(plan_table.details(best)))
        else:
            _print(f"\n{plan_table.model(best)}")
        if args.audit:
            _print("\n" + "\n".join(audit_report.lines(best)))
        cost = "price" if prices else "chip-seconds"
        _print(f"\nLeast {cost} a token: {best['topology']} with {plan_table.command(best)}")
        if prices or args.records:
            tokens = args.records and args.records * work.config.gen_length
            best["cost"] = search.cost(best, prices, tokens)
            _print(plan_table.cost(best["cost"], args.records, work.config.gen_length))
        if args.save:
            plan_save.for_slice(args, work, best)
    if not args.audit:
        for plan in plans:
            plan.pop("audit", None)
    if args.json:
        write(Path(args.json), json_text({"arguments": vars(args), "plans": plans}))
    return OK if best is not None else 1


def _tries(args: argparse.Namespace, work) -> list:
    """What is compiled: of the mesh that was asked for, or of the fastest by a roofline."""
    from leapjax.config import check_keys
    from leapjax.planning import candidates, chips
    from leapjax.sharding import check, parse

    if args.sweep:
        kinds = args.sweep.split(",")
        check_keys(kinds, "--sweep", chips.CHIPS, "chip")
        out = []
        for kind in kinds:
            found = []
            for where, mesh in candidates.replicas(work, kind, args.most_chips):
                found += candidates.candidates(work, where, mesh)
            out += candidates.best(found, args.tries)
        return out
    where = chips.parse(args.topology)
    if not args.mesh:
        meshes = candidates.meshes(work, where)
        found = [c for mesh in meshes for c in candidates.candidates(work, where, mesh)]
        return candidates.best(found, args.tries)
    mesh = parse(args.mesh)
    if mesh.devices != where.devices:
        raise UserError(
            f"--mesh {args.mesh} has {mesh.devices} devices, {where} has {where.devices}"
        )
    check(mesh, work.model)
    return candidates.candidates(work, where, mesh)


def _forms(text: str | None) -> tuple[str | None, ...]:
    from leapjax.config import QUANTIZATIONS, check_keys

    names = text.split(",") if text else ("none", *QUANTIZATIONS)
    check_keys(names, "--quantize", ("none", *QUANTIZATIONS), "form")
    return tuple(None if name == "none" else name for name in dict.fromkeys(names))


def _store_path(text: str | None) -> Path | None:
    from leapjax.compilation import cache_folder

    if text == "off":
        return None
    folder = cache_folder()
    return Path(text) if text else folder and folder / "plans.jsonl"


def _prices(text: str | None) -> dict[str, float]:
    from leapjax.planning import chips

    out = {}
    for part in text.split(",") if text else ():
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise UserError(f"--chip-hour {part!r}: expected a price, 1.2 or v5e=1.2")
        out |= dict.fromkeys([name.strip()] if name else chips.CHIPS, value)
    return out


def _print(text: str) -> None:
    print(text, flush=True)


main = command("plan", add_arguments, run, DESCRIPTION, EPILOG)
