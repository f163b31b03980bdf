"""`leapjax evaluate --reproduce`: published rows, expected against measured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from leapjax.cli.common import OK, human_bytes
from leapjax.cli.study_arguments import facts, load_model
from leapjax.errors import NoRoom, UserError
from leapjax.progress import counted

_FLAGS = ("data", "shots", "rows", "data_dir", "published_as", "allow_code_execution")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `leapjax evaluate` that belong to `--reproduce`."""
    add = parser.add_argument_group("published rows (docs/paper-rows.md)").add_argument
    text = "run a published row, or all of the model's; list prints them, table compares them"
    add("--reproduce", metavar="NAME", help=text)
    add("--data", metavar="FILE", help="JSONL of the benchmark's test split; never downloaded")
    add("--shots", metavar="FILE", help="JSONL that the row's solved examples come from")
    text = "all: folder of TASK.jsonl and TASK-shots.jsonl (default: the current one)"
    add("--data-dir", metavar="DIR", help=text)
    text = "all: the published model that --model is (default: by its name)"
    add("--published-as", metavar="ID", help=text)
    add("--rows", metavar="DIR", help="folder of row files (default: configs/paper)")
    add(
        "--allow-code-execution",
        action="store_true",
        help="humaneval, mbpp: run generated programs on this machine, with limits",
    )


def refuse(args: argparse.Namespace) -> None:
    """Refuse the flags of `add_arguments` where no row is asked for."""
    for name in _FLAGS:
        if getattr(args, name):
            raise UserError(f"--{name.replace('_', '-')} is only read with --reproduce NAME")


def run(args: argparse.Namespace) -> int:
    """List the rows, describe one, run it, or run all; `args` are those of `leapjax evaluate`."""
    from leapjax.config import check_keys
    from leapjax.studies import paper_reproduction as reproduction
    from leapjax.studies import paper_rows
    from leapjax.tasks import ifeval

    rows = paper_rows.load(Path(args.rows) if args.rows else None)
    if shown := {"list": paper_rows.listing, "table": paper_rows.comparison}.get(args.reproduce):
        sys.stdout.write(shown(rows))
        return OK
    if args.reproduce == "all":
        return _run_all(args, rows)
    check_keys([args.reproduce], "--reproduce", (*rows, "all", "list", "table"), "row")
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
    lm, batch_size = _load(args, [row])
    made = _measure(args, lm, batch_size, row, problems, prompts)
    sys.stdout.write(reproduction.text(made))
    if args.output:
        from leapjax.studies import files, runner

        options = row.decode.for_model(lm.config).to_dict()
        made |= {"settings": runner.provenance(lm, options, batch_size)}
        files.write(Path(args.output) / f"{row.name}.json", made)
    return OK


def _load(args: argparse.Namespace, rows) -> tuple[Any, int]:
    """The model, with room for the largest of some rows, and the rows decoded at once."""
    from leapjax.caches import CACHES
    from leapjax.loader import model_config
    from leapjax.studies import runner

    batch_size = args.batch_size or runner.default_batch_size()
    config = model_config(args.model)
    configs = [row.decode.for_model(config) for row in rows]
    largest = max(configs, key=lambda c: (c.gen_length, CACHES[c.cache].stores))
    return load_model(args, "leapjax evaluate", args.model, largest, batch_size), batch_size


def _measure(args: argparse.Namespace, lm, batch_size: int, row, problems, prompts):
    """Decode and score a row; the answers that `--output` has are taken up again."""
    from leapjax.studies import files, runner
    from leapjax.studies import paper_reproduction as reproduction

    config = row.decode.for_model(lm.config)
    folder = Path(args.output) if args.output else None
    asked = [
        runner.Question(record["id"], lm.request(record, config))
        for record in reproduction.records(row, problems, prompts, lm.codec)
    ]
    # Rows of one setting share a store, and so their answers.
    where = folder, f"{row.task}-{config.policy}", config.to_dict()
    how: dict[str, Any] = {"batch_size": batch_size, "timed": True}
    with counted(row.name, len(asked), "problem") as how["show"]:
        answers = runner.decode(lm, asked, *where, **how)
    run_them = bool(row.benchmark.program and args.allow_code_execution)
    with counted("programs", len(problems) if run_them else 0, "program") as show:
        judged = reproduction.verdicts(row, problems, answers, execute=run_them, show=show)
    if folder:
        lines = reproduction.samples(row, problems, answers, judged)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write(folder / f"{row.name}-samples.jsonl", text)
    return reproduction.report(row, answers, judged)


def _run_all(args: argparse.Namespace, rows) -> int:
    """Run every row that is the model's, has its data, and fits; write one report."""
    from leapjax.config import check_keys
    from leapjax.loader import model_config
    from leapjax.studies import files, paper_kit
    from leapjax.studies import paper_reproduction as reproduction

    for name, why in (("model", "a checkpoint"), ("output", "a folder for the report")):
        if not getattr(args, name):
            raise UserError(f"--reproduce all needs --{name}, {why}")
    if args.data or args.shots:
        raise UserError(
            "--reproduce all takes its files from --data-dir; leave --data, --shots out"
        )
    models = {row.model for row in rows.values()} - {paper_kit.UNKNOWN}
    if args.published_as:
        check_keys([args.published_as], "--published-as", sorted(models), "model")
    shape = model_config(args.model)
    model = args.published_as or paper_kit.published_model(args.model, shape, models)
    folder = Path(args.data_dir or ".")
    found = {n: paper_kit.obstacle(row, model, shape, folder) for n, row in rows.items()}
    reasons = {n: why for n, why in found.items() if why}
    told = "".join(f"{line}\n" for line in paper_kit.not_run(reasons))
    # Whatever is wrong with the files is said now, not after hours.
    asked = {}
    for name in [n for n in rows if n not in reasons]:
        data, shots = paper_kit.files_of(rows[name], folder)
        problems = reproduction.problems_of(rows[name], str(data), args.limit)
        solved = reproduction.shots_of(rows[name], shots and str(shots))
        asked[name] = problems, reproduction.prompts(rows[name], problems, solved)
        reasons[name] = paper_kit.PENDING
    out = Path(args.output)
    told = [line for line in paper_kit.not_run(reasons) if paper_kit.PENDING not in line]
    sys.stdout.write(
        f"{model}: {len(asked)} of {len(rows)} rows\n" + "".join(f"{x}\n" for x in told)
    )
    sys.stdout.flush()
    if not asked:
        raise UserError(f"no row of {model} can be run with the files in {folder}")
    made: dict[str, Any] = {}

    def write(facts) -> None:
        report = paper_kit.report(rows, made, reasons, facts)
        contents = {"report.json": report, "report.md": paper_kit.markdown(report)}
        files.write_all(out, contents)

    files.prepare(out, (), True)
    try:
        _check_room(args)
        lm, batch_size = _load(args, [rows[name] for name in asked])
    except NoRoom as e:
        reasons |= dict.fromkeys(asked, f"does not fit here: {e}")
        about = facts(args, None) | {"batch_size": None}
        asked = {}
    else:
        about = facts(args, lm) | {"batch_size": batch_size}
        for name in [n for n in asked if not reproduction.has_template(rows[n], lm.codec)]:
            reasons[name] = "the checkpoint has no chat template"
            del asked[name]
    about |= {"published_as": model, "limit": args.limit}
    write(about)
    for name, (problems, prompts) in asked.items():
        sys.stdout.write(f"{name}\n")
        try:
            made[name] = _measure(args, lm, batch_size, rows[name], problems, prompts)
        except NoRoom as e:
            reasons[name] = f"does not fit here: {e}"
            sys.stdout.write(f"{reasons[name]}\n")
        else:
            del reasons[name]
            sys.stdout.write(reproduction.text(made[name]))
        sys.stdout.flush()
        write(about)
    print(f"{out / 'report.md'}, {out / 'report.json'}")
    return OK


def _check_room(args: argparse.Namespace) -> None:
    """Refuse weights that are larger than the memory of the one device that would hold them."""
    import jax

    from leapjax.loader import weight_bytes
    from leapjax.serve.memory import device_limit, memory_limit

    spread = len(jax.local_devices()) > 1 and device_limit(jax.local_devices()[0])
    if args.mesh not in (None, "auto") or spread:
        return  # the mesh is chosen, or checked, by what it needs
    needed, limit = weight_bytes(args.model), memory_limit()
    if needed > limit:
        raise NoRoom(f"the weights take {human_bytes(needed)} of {human_bytes(limit)}")
