"""`leapjax evaluate --reproduce`: a published row, expected against measured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from leapjax.cli.common import OK
from leapjax.cli.study_arguments import load_model
from leapjax.errors import UserError
from leapjax.progress import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `leapjax evaluate` that belong to `--reproduce`."""
    add = parser.add_argument_group("published rows (docs/paper-rows.md)").add_argument
    add("--reproduce", metavar="NAME", help="run a published row; list prints all of them")
    add("--data", metavar="FILE", help="JSONL of the benchmark's test split; never downloaded")
    add("--shots", metavar="FILE", help="JSONL that the row's solved examples come from")
    add("--rows", metavar="DIR", help="folder of row files (default: configs/paper)")
    add(
        "--allow-code-execution",
        action="store_true",
        help="humaneval, mbpp: run generated programs on this machine, with limits",
    )


def run(args: argparse.Namespace) -> int:
    """List the rows, describe one, or run it; `args` are those of `leapjax evaluate`."""
    from leapjax.config import check_keys
    from leapjax.studies import paper_reproduction as reproduction
    from leapjax.studies import paper_rows
    from leapjax.tasks import ifeval

    rows = paper_rows.load(Path(args.rows) if args.rows else None)
    if args.reproduce == "list":
        sys.stdout.write(paper_rows.listing(rows))
        return OK
    check_keys([args.reproduce], "--reproduce", (*rows, "list"), "row")
    row = rows[args.reproduce]
    sys.stdout.write(paper_rows.describe(row))
    sys.stdout.flush()
    reproduction.check(row)
    fields = ", ".join(row.benchmark.fields)
    if not args.data:
        raise UserError(f"--reproduce {row.name} needs --data FILE (JSONL of {fields})")
    if not args.model:
        raise UserError(f"--reproduce {row.name} needs --model, a checkpoint of {row.model}")
    if row.benchmark.program and not (args.allow_code_execution or args.output):
        raise UserError(
            f"{row.name} is scored by running generated programs: allow it by "
            "--allow-code-execution, or keep the programs for another scorer by --output DIR"
        )
    if row.task == "ifeval":
        ifeval.checker()
    problems = reproduction.problems_of(row, args.data, args.limit)
    prompts = reproduction.prompts(row, problems, reproduction.shots_of(row, args.shots))
    made = _measure(args, row, problems, prompts)
    sys.stdout.write(reproduction.text(made))
    return OK


def _measure(args: argparse.Namespace, row, problems, prompts) -> dict[str, Any]:
    from leapjax.loader import model_config
    from leapjax.studies import files, runner
    from leapjax.studies import paper_reproduction as reproduction

    batch_size = args.batch_size or runner.default_batch_size()
    config = row.decode.for_model(model_config(args.model))
    lm = load_model(args, "leapjax evaluate", args.model, config, batch_size)
    folder = Path(args.output) if args.output else None
    asked = [
        runner.Question(record["id"], lm.request(record, config))
        for record in reproduction.records(row, problems, prompts, lm.codec)
    ]
    options = config.to_dict()
    how: dict[str, Any] = {"batch_size": batch_size, "timed": True}
    with counted(row.name, len(asked), "problem") as how["show"]:
        answers = runner.decode(lm, asked, folder, row.name, options, **how)
    run_them = bool(row.benchmark.program and args.allow_code_execution)
    with counted("programs", len(problems) if run_them else 0, "program") as show:
        judged = reproduction.verdicts(row, problems, answers, execute=run_them, show=show)
    report = reproduction.report(row, answers, judged)
    report |= {"settings": runner.provenance(lm, options, batch_size)}
    if folder:
        lines = reproduction.samples(row, problems, answers, judged)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        contents = {f"{row.name}.json": report, f"{row.name}-samples.jsonl": text}
        files.write_all(folder, contents)
    return report
