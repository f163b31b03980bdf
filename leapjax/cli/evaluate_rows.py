"""`leapjax evaluate --reproduce`: a published row, expected against measured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from leapjax.cli.common import OK, note_mesh
from leapjax.errors import UserError
from leapjax.progress import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that belong to `--reproduce`.

    Args:
      parser: of `leapjax evaluate`.
    """
    add = parser.add_argument_group("published rows (docs/paper-rows.md)").add_argument
    add("--reproduce", metavar="NAME", help="run a published row; list prints all of them")
    add("--data", metavar="FILE", help="JSONL of the benchmark's test split; never downloaded")
    add("--shots", metavar="FILE", help="JSONL that the row's solved examples come from")
    add(
        "--rows",
        metavar="DIR",
        help="folder of row files (default: configs/paper)",
    )
    add(
        "--allow-code-execution",
        action="store_true",
        help="humaneval, mbpp: run generated programs on this machine, with limits",
    )


def run(args: argparse.Namespace) -> int:
    """List the rows, describe one, or run it.

    Args:
      args: of `leapjax evaluate`.

    Returns:
      The exit status.

    Raises:
      UserError: bad input or options, or a row that can't be run.
    """
    from leapjax.config import check_keys
    from leapjax.evaluation import paper_rows, reproduce
    from leapjax.tasks import ifeval

    rows = paper_rows.load(Path(args.rows) if args.rows else None)
    if args.reproduce == "list":
        sys.stdout.write(paper_rows.listing(rows))
        return OK
    check_keys([args.reproduce], "--reproduce", (*rows, "list"), "row")
    row = rows[args.reproduce]
    sys.stdout.write(paper_rows.describe(row))
    sys.stdout.flush()
    reproduce.check(row)
    fields = ", ".join(row.benchmark.fields)
    if not args.data:
        raise UserError(f"--reproduce {row.name} needs --data FILE (JSONL of {fields})")
    if not args.model:
        raise UserError(f"--reproduce {row.name} needs --model, a checkpoint of {row.model}")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit is {args.limit}; expected at least 1")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; expected at least 1")
    if row.benchmark.program and not (args.allow_code_execution or args.output):
        raise UserError(
            f"{row.name} is scored by running generated programs: allow it by "
            "--allow-code-execution, or keep the programs for another scorer by --output DIR"
        )
    if row.task == "ifeval":
        ifeval.checker()
    problems = reproduce.problems_of(row, args.data, args.limit)
    prompts = reproduce.prompts(row, problems, reproduce.shots_of(row, args.shots))
    made = _measure(args, row, problems, prompts)
    sys.stdout.write(reproduce.text(made))
    return OK


def _measure(args: argparse.Namespace, row, problems, prompts) -> dict[str, Any]:
    from leapjax.compilation import enable_cache
    from leapjax.evaluation import reproduce, runner
    from leapjax.evaluation.results import Results
    from leapjax.evaluation.settings import Row
    from leapjax.fit import wanted
    from leapjax.terminal.embedded import load

    enable_cache()
    batch_size = args.batch_size or runner.default_batch_size()
    lm = load(
        args.model,
        dtype=args.dtype,
        quantize=args.quantize,
        mesh=wanted(args.mesh, row.decode, batch_size),
    )
    note_mesh("leapjax evaluate", args.mesh, lm)
    if lm.codec is None:
        raise UserError(f"{args.model}: has no tokenizer, so answers can't be read")
    folder = Path(args.output) if args.output else None
    asked = reproduce.records(row, problems, prompts, lm.codec)
    settings = runner.row_settings(lm, Row(row.name, row.decode), batch_size)
    with (
        Results(folder, row.name, settings) as results,
        counted(row.name, len(asked), "problem") as show,
    ):
        runner.decode(lm, asked, row.decode, results, batch_size=batch_size, show=show)
        answers = {p.id: results.answers[r["id"]] for p, r in zip(problems, asked, strict=True)}
    run_them = bool(row.benchmark.program and args.allow_code_execution)
    with counted("programs", len(problems) if run_them else 0, "program") as show:
        measured = reproduce.measure(row, problems, answers, execute=run_them, show=show)
    made = reproduce.report(row, measured) | {"settings": settings}
    if folder:
        _write(folder / f"{row.name}.json", json.dumps(made, indent=1) + "\n")
        lines = reproduce.samples(row, problems, answers, measured)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        _write(folder / f"{row.name}-samples.jsonl", text)
    return made


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise UserError(f"{path}: can't be written ({e.strerror or e})") from e
