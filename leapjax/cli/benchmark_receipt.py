"""`leapjax benchmark --receipt` and `--check-receipt`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from leapjax.errors import UserError


def run_receipt(args: argparse.Namespace, usual: Mapping[str, object]) -> int:
    """Make a receipt and write it.

    Args:
      args: the command's.
      usual: their values where nothing is given.

    Raises:
      UserError: an argument that it does not take, a mesh that is too large, or a file that can't
        be written, all before anything is timed.
    """
    _refuse_others(args, usual, "--receipt", {"receipt", "mesh", "repeats", "quick"})
    from leapjax.benchmarks import receipt
    from leapjax.outputs import check_output
    from leapjax.sharding import parse
    from leapjax.studies.files import json_text, write

    if args.receipt != "-":
        check_output(args.receipt, True, (".json",), "receipt")
    mesh = parse(args.mesh) if args.mesh else None
    text = json_text(receipt.make(mesh, args.repeats, args.quick))
    if args.receipt == "-":
        print(text, end="")
    else:
        write(Path(args.receipt), text)
    return 0


def run_check(args: argparse.Namespace, usual: Mapping[str, object]) -> int:
    """Print the table of a receipt; raises UserError if it is none. Arguments as above."""
    _refuse_others(args, usual, "--check-receipt", {"check_receipt"})
    from leapjax.benchmarks import receipt_fields

    print(receipt_fields.table([receipt_fields.read(args.check_receipt)]), end="")
    return 0


def _refuse_others(
    args: argparse.Namespace, usual: Mapping[str, object], flag: str, taken: set[str]
) -> None:
    given = {name for name, value in usual.items() if getattr(args, name) != value}
    if others := sorted(given - taken):
        names = ", ".join("--" + name.replace("_", "-") for name in others)
        raise UserError(f"{flag} does not go with {names}")
