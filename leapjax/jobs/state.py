"""A job's folder before it runs and after: what is there, and `summary.json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs import journal as journals
from leapjax.jobs import spread_journal
from leapjax.jobs.header import differences, other_version, versions
from leapjax.jobs.journal import Journal
from leapjax.jobs.shards import SUMMARY, clashes, holds_output, summary_bytes
from leapjax.jobs.spec import JobSpec, Result
from leapjax.jobs.spread_journal import State
from leapjax.jobs.storage import Folder
from leapjax.jobs.summary import Summary


def to_resume(folder: Folder, spec: JobSpec) -> Journal | State | None:
    """How far the job is that is to go on, None to begin one.

    Args:
      folder: where its files are.
      spec: the job.

    Returns:
      A State if several processes have worked on it, else its journal.

    Raises:
      UserError: the flags don't allow either.
    """
    where = f"output {spec.output}"
    if spec.resume and spec.overwrite:
        raise UserError("--resume and --overwrite are both given; choose one")
    try:
        names = list(folder.sizes())
    except NotADirectoryError:
        raise UserError(f"{where}: is a file; name a folder, or a file ending in .jsonl") from None
    has_journal = journals.NAME in names
    if not has_journal and (others := clashes(names)):
        raise UserError(f"{where}: holds other files ({others[0]}); choose a new or empty folder")
    if spec.overwrite or not (has_journal or holds_output(names)):
        return None
    if not spec.resume:
        raise UserError(
            f"{where}: is there already; add --resume to go on with it, or --overwrite to start "
            "anew"
        )
    if not has_journal:
        raise UserError(
            f"{where}: has shards but no journal, so it can't be resumed; restore the journal, or "
            "start anew with --overwrite"
        )
    values, _ = journals.read_values(folder, journals.SPREAD_FORMAT) or ([], 0)
    if values and values[0]["format"] == journals.SPREAD_FORMAT:
        return spread_journal.read(folder, values)
    return Journal.read(folder)


def must_agree(
    spec: JobSpec, old: Journal | State, header: dict[str, Any], note: Callable[[str], None]
) -> None:
    """Refuse to go on with a job that was begun with something else.

    Args:
      spec: the job.
      old: how far it is.
      header: what it would go on with.
      note: takes a line for the user, where another version of leapjax began the job.

    Raises:
      UserError: what differs; or more bad records than `spec` allows.
    """
    if changes := differences(old.header, header):
        raise UserError(
            f"output {spec.output}: can't be resumed, because {' and '.join(changes)}; "
            "use what it was begun with, or start anew with --overwrite"
        )
    check_errors(spec, old.errors)
    if not old.done and (line := other_version(old.header)):
        note(line)


def check_errors(spec: JobSpec, errors: int) -> None:
    """Refuse to go on with more bad records than are allowed.

    Raises:
      UserError: there are.
    """
    if errors > spec.max_errors:
        raise UserError(
            f"output {spec.output}: bad records set aside so far: {errors}, but "
            f"--max-errors is {spec.max_errors}; resume with at least that many"
        )


def ended(
    folder: Folder, journal: Journal | State, ran: Summary | None, processes: int = 1
) -> Result:
    """Write `summary.json`, unless an earlier run did.

    Args:
      folder: of the job.
      journal: how far it is.
      ran: what this run decoded; None if nothing was left to do.
      processes: that decoded in this run.

    Raises:
      OSError: it can't be written.
    """
    totals, summary = journal.totals, ran or Summary()
    content = {
        **{{"rows": "answers"}.get(name, name): count for name, count in totals.items()},
        "tokens_per_step": _ratio(totals["tokens"], totals["steps"]),
        "shards": journal.shards,
        **{k: v for k, v in journal.header.items() if k not in ("format", "versions")},
        "versions": versions(),
        "last_run": {
            "answers": summary.answers,
            "seconds": round(summary.seconds, 3),
            "tokens_per_second": _ratio(summary.tokens, summary.seconds),
            **({"processes": processes} if processes > 1 else {}),
        },
    }
    if ran is not None or folder.size(SUMMARY) is None:
        folder.write(SUMMARY, summary_bytes(content))
    return Result(summary, content, ran is not None)


def _ratio(a: float, b: float) -> float | None:
    return round(a / b, 4) if b else None
