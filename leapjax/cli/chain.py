"""`leapjax chain`: what parallel commits cost on models whose truth is known."""

import argparse
import sys
from pathlib import Path
from typing import Any

from leapjax.cli.common import (
    OK,
    at_least,
    command,
    listed,
    note_plots,
    numbers,
    place,
    shares,
)
from leapjax.errors import UserError
from leapjax.progress import counted

DESCRIPTION = """\
Decode hidden Markov chains, whose conditionals are known exactly, with every policy under many
settings, and compute the cost of parallel commits in nats. Then compare commits in an anchor's
neighbourhood with as many commits elsewhere, by correlation length and radius.
"""

EPILOG = """\
examples:
  # Everything: 200 settings of each policy, figures, tables (some minutes)
  leapjax chain --output runs/chain

  # Two policies, on a chain with a longer memory
  leapjax chain --policies localleap,placebo --frontier 0.99 --output runs/two

  # A chain of your own (leapjax.chains.save), or one fitted to a text's characters
  leapjax chain --model my-chain --output runs/mine
  leapjax chain --text book.txt --output runs/book

--output DIR gets report.json, report.md, CSV, two plots (extra `plots`), the fitted chain
(fitted/, a checkpoint with a character tokenizer), and the answers as they finish: the same
command resumes. docs/chain.md explains the numbers.

exit status: 0 done, 2 bad input or options, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add, whole = parser.add_argument, at_least(1)
    add("--output", type=place, required=True, metavar="DIR", help="folder for the results")
    text = "policies on the frontier (default: all)"
    add("--policies", type=listed, default=[], metavar="NAME,…", help=text)
    text = "settings of each policy (default: 200)"
    add("--settings", type=whole, default=200, metavar="N", help=text)
    text = "decodes per setting, from which a policy's front is chosen (default: 8)"
    add("--prompts", type=at_least(2), default=8, metavar="N", help=text)
    text = "new decodes per setting on the front, which are reported (default: 32)"
    add("--fresh", type=at_least(2), default=32, metavar="N", help=text)
    add("--gen-length", type=whole, default=32, metavar="N", help="canvas length (default: 32)")
    text = "second eigenvalues of the frontier's synthetic chains (default: 0.8,0.95)"
    add("--frontier", type=shares, default=[0.8, 0.95], metavar="X,…", help=text)
    text = "second eigenvalues for the neighbourhoods (default: 0.5,0.8,0.9,0.95,0.98)"
    values = [0.5, 0.8, 0.9, 0.95, 0.98]
    add("--eigenvalues", type=shares, default=values, metavar="X,…", help=text)
    add("--radii", type=numbers, default=[1, 2, 4, 8, 16], metavar="R,…", help="(default: 1,…,16)")
    text = "thresholds of an anchor's neighbours (default: 0.5,0.75)"
    add("--relaxed", type=shares, default=[0.5, 0.75], metavar="P,…", help=text)
    text = "chains per eigenvalue (default: 16)"
    add("--chains", type=at_least(2), default=16, metavar="N", help=text)
    text = "contexts per chain (default: 256)"
    add("--contexts", type=whole, default=256, metavar="N", help=text)
    text = "number of states, and of tokens, of synthetic chains (default: 12)"
    add("--states", type=at_least(2), default=12, metavar="N", help=text)
    own = parser.add_mutually_exclusive_group()
    text = "the frontier's second chain, decoded greedily"
    own.add_argument("--model", metavar="DIR", help=text)
    text = "fit that chain to the characters of a file's lines (default: generated word problems)"
    own.add_argument("--text", metavar="FILE", help=text)
    text = "seed of chains and prompts (default: 1)"
    add("--seed", type=at_least(0), default=1, metavar="S", help=text)
    add("--batch-size", type=whole, metavar="N", help="rows decoded at once")
    add("--overwrite", action="store_true", help="replace an existing report")


def run(args: argparse.Namespace) -> int:
    """Carry the command out; see `leapjax.cli.common.command`."""
    from leapjax import chains
    from leapjax.compilation import enable_cache
    from leapjax.policies import POLICIES
    from leapjax.policies.names import policy_of, suggestion
    from leapjax.studies import chain_report
    from leapjax.studies.files import prepare, write_all

    names: dict[str, None] = {}
    for name in args.policies:
        if (found := policy_of(name)) is None:
            raise UserError(f"--policies: unknown policy {name!r}; {suggestion(name)}")
        names[found[0]] = None
    _check(args)
    for name in names:  # refused before anything is written
        chains.synthetic(2, 2, 0.5).options(
            policy=name, gen_length=args.gen_length, block_length=args.gen_length
        )
    source = _source(args)
    folder = Path(args.output)
    prepare(folder, [*chain_report.FILES, *chain_report.FIGURES], args.overwrite)
    note_plots("leapjax chain")
    enable_cache()
    report = study(args, list(names or POLICIES), source, folder)
    sys.stdout.write(chain_report.markdown(report))
    sys.stdout.flush()
    made = write_all(folder, chain_report.files(report))
    print(f"{folder}: {', '.join(made)}", file=sys.stderr)
    return OK


def _check(args: argparse.Namespace) -> None:
    for name in ("frontier", "eigenvalues", "relaxed"):
        for value in getattr(args, name):
            if not 0 < value < 1:
                raise UserError(f"--{name}: {value:g} is not between 0 and 1")
    if wrong := [r for r in args.radii if r < 1]:
        raise UserError(f"--radii: {wrong[0]} is not a whole number of at least 1")


def _source(args: argparse.Namespace):
    """The chain of `--model`, or else the lines that one is fitted to."""
    import leapjax
    from leapjax import chains, tasks

    if args.model:
        lm = leapjax.load(args.model)
        chains.weights_of(lm)
        return lm
    if not args.text:
        problems = tasks.get("wordproblems").problems("heldout", [], 300, 7)
        return [p.question for p in problems]
    try:
        text = Path(args.text).read_text("utf-8")
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"--text {args.text}: can't be read ({reason})") from e
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--text {args.text}: holds no text")
    return lines


def study(
    args: argparse.Namespace, policies: list[str], source: Any, folder: Path
) -> dict[str, Any]:
    """Decode, price, compare.

    `source` is a chain, or the lines that one is fitted to.
    """
    from leapjax import chains
    from leapjax.studies import chain_study, runner

    batch_size = args.batch_size or 4 * runner.default_batch_size()

    def synthetic(eigenvalue: float, seed: int):
        return chains.synthetic(args.states, args.states, eigenvalue, seed)

    used = {
        f"synthetic-{x:g}": (synthetic(x, args.seed), 1.0, f"sampled: second eigenvalue {x:g}")
        for x in args.frontier
    } | {"fitted": _second_chain(args, source, folder)}
    points, left_out, counts = [], {}, {}
    for name, (lm, heat, _) in used.items():
        most = args.settings * args.prompts * len(policies)
        with counted(name, most, "answer") as show:
            found, refused = chain_study.frontier(
                lm,
                policies,
                temperature=heat,
                canvas=args.gen_length,
                prompts=chains.sample(lm, args.prompts, 8, args.seed),
                fresh=chains.sample(lm, args.fresh, 8, args.seed + 1),
                count=args.settings,
                folder=folder,
                batch_size=batch_size,
                show=show,
            )
        points += [{"chain": name} | p for p in found]
        left_out |= refused
        counts[name] = {p: sum(x["policy"] == p for x in found) for p in policies}
    rows = []
    with counted("neighbourhoods", len(args.eigenvalues) * len(args.relaxed), "table") as show:
        for x in args.eigenvalues:
            lms = [synthetic(x, args.seed + n) for n in range(args.chains)]
            for relaxed in args.relaxed:
                how = (args.radii, relaxed, args.contexts, args.seed)
                rows += chain_study.neighbourhoods(lms, *how)
                show(len(rows) // len(args.radii))
    return {
        "canvas": args.gen_length,
        "prompts": args.prompts,
        "fresh": args.fresh,
        "seed": args.seed,
        "chains": {
            name: {
                "title": title,
                "temperature": heat,
                "hash": lm.model_hash,
                "second_eigenvalue": chains.second_eigenvalue(lm),
                "correlation_length": chains.correlation_length(lm),
            }
            for name, (lm, heat, title) in used.items()
        },
        "counts": counts,
        "left_out": left_out,
        "points": points,
        "neighbourhoods": rows,
        "device": runner.device_name(),
        "versions": runner.versions(),
    }


def _second_chain(args: argparse.Namespace, source: Any, folder: Path):
    """The chain of `--model`, or one fitted to lines; its temperature and title."""
    import leapjax
    from leapjax import chains
    from leapjax.checkpoint import is_checkpoint

    if args.model:
        return source, 0.0, f"greedy: {Path(args.model).name}, {source.config.d_model} states"
    name = Path(args.text).name if args.text else "word problems"
    title = f"greedy: 16 states fitted to the characters of {name}"
    place = folder / "fitted"
    if args.text or not is_checkpoint(place):
        with counted("fitting a chain to characters", 40, "iteration") as show:
            lm, files = chains.fit_text(source, 16, seed=args.seed, show=lambda n, nats: show(n))
        chains.save(place, lm, files, overwrite=True)
    return leapjax.load(place), 0.0, title


main = command("chain", add_arguments, run, DESCRIPTION, EPILOG)
