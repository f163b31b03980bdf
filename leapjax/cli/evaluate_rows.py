"""`leapjax evaluate --reproduce`: published rows, published against measured, in one report."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from leapjax.cli.common import OK, human_bytes, listed
from leapjax.cli.study_arguments import facts, load_model
from leapjax.errors import NoRoom, UserError
from leapjax.progress import counted

PENDING = "not run yet"
_FLAGS = ("rows", "data_dir", "published_as", "allow_code_execution")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `leapjax evaluate` that belong to `--reproduce`."""
    add = parser.add_argument_group("published rows (docs/paper-rows.md)").add_argument
    text = "run published rows, or all of the model's; list prints them, table compares them"
    add("--reproduce", metavar="NAME,…", help=text)
    text = "folder of TASK.jsonl and TASK-shots.jsonl; nothing is downloaded (default: current one)"
    add("--data-dir", metavar="DIR", help=text)
    text = "the published model that --model is (default: by its name)"
    add("--published-as", metavar="ID", help=text)
    add("--rows", metavar="DIR", help="folder of row files (default: configs/paper)")
    text = "for humaneval, mbpp: run generated programs on this machine, with resource limits"
    add("--allow-code-execution", action="store_true", help=text)


def refuse(args: argparse.Namespace) -> None:
    """Refuse the flags of `add_arguments` where no row is asked for."""
    for name in _FLAGS:
        if getattr(args, name):
            raise UserError(f"--{name.replace('_', '-')} is only read with --reproduce NAME")


def run(args: argparse.Namespace) -> int:
    """List the rows, compare them, or run some; `args` are those of `leapjax evaluate`."""
    from leapjax.config import check_keys
    from leapjax.loader import model_config
    from leapjax.studies import paper_rows

    rows = paper_rows.load(Path(args.rows) if args.rows else None)
    names = listed(args.reproduce)
    if not names:
        raise UserError("--reproduce needs the name of a row, all, list or table")
    words = ("all", "list", "table") if len(names) == 1 else ()  # each stands alone
    check_keys(names, "--reproduce", (*rows, *words), "row")
    if shown := {"list": paper_rows.listing, "table": paper_rows.comparison}.get(names[0]):
        sys.stdout.write(shown(rows))
        return OK
    every = names == ["all"]
    if every:
        names = [*rows]
    else:
        sys.stdout.write("".join(paper_rows.describe(rows[name]) for name in names))
        sys.stdout.flush()
    for name, why in (("model", "a checkpoint"), ("output", "a folder for answers and report")):
        if not getattr(args, name):
            raise UserError(f"--reproduce {args.reproduce} needs --{name}, {why}")
    models = {rows[name].model for name in names} - {paper_rows.UNKNOWN}
    if args.published_as:
        check_keys([args.published_as], "--published-as", sorted(models), "model")
    shape = model_config(args.model)
    # Whoever names rows of one model says which model it is.
    if not every and len(models) == 1:
        (args.published_as,) = models
    model = args.published_as or paper_rows.published_model(args.model, shape, models)
    return _run_rows(args, rows, names, model, shape)


def _run_rows(args: argparse.Namespace, rows, names: list[str], model: str, shape) -> int:
    """Run every row that is the model's, has its data, and fits; write one report."""
    from leapjax.studies import files, paper_report
    from leapjax.studies import paper_reproduction as reproduction

    folder, out = Path(args.data_dir or "."), Path(args.output)
    reasons: dict[str, str] = {}
    for name in names:
        if why := reproduction.obstacle(rows[name], model, shape, folder):
            reasons[name] = why
    asked = {}
    for name in [n for n in names if n not in reasons]:  # what is wrong with a file is said now
        row = rows[name]
        problems = reproduction.problems_of(row, folder, args.limit)
        shots = reproduction.shots_of(row, folder)
        asked[name] = problems, reproduction.prompts(row, problems, shots)
    told = "".join(f"{line}\n" for line in paper_report.not_run(reasons))
    sys.stdout.write(f"{model}: {len(asked)} of {len(names)} rows\n{told}")
    sys.stdout.flush()
    if not asked:
        why = "; ".join(dict.fromkeys(reasons.values()))
        raise UserError(f"no row can be run with the files in {folder}: {why}")
    reasons |= dict.fromkeys(asked, PENDING)
    files.prepare(out, (), True)
    # The shape shows whether the checkpoint is what it is said to be.
    about = {"published_as": model, "layers": shape.n_layers, "width": shape.d_model}
    about, made = about | {"limit": args.limit}, {}

    def write() -> None:
        report = paper_report.report(rows, made, reasons, about)
        files.write_all(out, {"report.json": report, "report.md": paper_report.markdown(report)})

    lm: Any = None
    batch_size = 0
    try:
        _check_room(args)
        lm, batch_size = _load(args, [rows[name] for name in asked])
    except NoRoom as e:
        reasons |= dict.fromkeys(asked, f"does not fit here: {e}")
        asked = {}
    about |= facts(args, lm) | {"batch_size": batch_size}
    write()
    for name, what in asked.items():
        try:
            made[name] = _measure(args, lm, batch_size, rows[name], *what)
        except UserError as e:  # of this row: no room, no chat template, a prompt that is too long
            reasons[name] = f"does not fit here: {e}" if isinstance(e, NoRoom) else str(e)
            sys.stdout.write(f"{name}: {reasons[name]}\n")
        else:
            del reasons[name]
            sys.stdout.write(paper_report.text(rows[name], made[name]))
        sys.stdout.flush()
        write()
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

    config, folder = row.decode.for_model(lm.config), Path(args.output)
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
    lines = reproduction.samples(row, problems, answers, judged)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    files.write(folder / f"{row.name}-samples.jsonl", text)
    return reproduction.measured(row, answers, judged)
