"""A job's folder when a run begins and when the job ends.

Functions that write are for process 0, while it holds the folder's lock. They raise `OSError` if
a file can't be read or written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs import journal
from leapjax.jobs.header import differences, other_version, versions
from leapjax.jobs.journal import Entry, State
from leapjax.jobs.names import (
    ERRORS,
    JOURNAL,
    LOCK,
    SUMMARY,
    is_ours,
    open_name,
    open_number,
    part_name,
    part_number,
)
from leapjax.jobs.spec import JobSpec, Result
from leapjax.jobs.summary import Summary
from leapjax.storage import Folder


def to_resume(folder: Folder, spec: JobSpec) -> State | None:
    """The state of the job to go on with, None to begin one; writes nothing.

    Raises:
      UserError: the flags allow neither, or a journal can't be read.
    """
    where = f"output {spec.output}"
    if spec.resume and spec.overwrite:
        raise UserError("--resume and --overwrite are both given; choose one")
    try:
        names = list(folder.sizes())
    except NotADirectoryError:
        raise UserError(f"{where}: is a file; name a folder, or a file ending in .jsonl") from None
    others = [name for name in names if not is_ours(name)]
    if others and JOURNAL not in names:
        raise UserError(f"{where}: holds other files ({others[0]}); choose a new or empty folder")
    outputs = [n for n in names if n in (ERRORS, SUMMARY) or part_number(n) is not None]
    if spec.overwrite or not (JOURNAL in names or outputs):
        return None
    if not spec.resume:
        raise UserError(
            f"{where}: is there already; add --resume to go on with it, or --overwrite to start "
            "anew"
        )
    if JOURNAL not in names:
        raise UserError(
            f"{where}: has shards but no journal, so it can't be resumed; restore the journal, or "
            "start anew with --overwrite"
        )
    return journal.read(folder)


def must_agree(
    spec: JobSpec, old: State, header: dict[str, Any], note: Callable[[str], None]
) -> None:
    """Refuse to go on with a job that was begun with something else.

    Args:
      spec: the job.
      old: its state.
      header: the header of a new job with this `spec`.
      note: takes a line for the user if another version of leapjax began the job.

    Raises:
      UserError: what differs; or there are more bad records than `spec` allows.
    """
    if changes := differences(old.header, header):
        raise UserError(
            f"output {spec.output}: can't be resumed, because {' and '.join(changes)}; "
            "use what it was begun with, or start anew with --overwrite"
        )
    check_errors(spec, old)
    if not old.done and (line := other_version(old.header)):
        note(line)


def check_errors(spec: JobSpec, state: State) -> None:
    """Refuse to go on with more bad records than are allowed."""
    if (errors := state.totals["errors"]) > spec.max_errors:
        raise UserError(
            f"output {spec.output}: bad records set aside so far: {errors}, but "
            f"--max-errors is {spec.max_errors}; resume with at least that many"
        )


def begin(folder: Folder, state: State, new: bool) -> None:
    """Begin a run: write the state into `journal`, and make the other files agree with it.

    Args:
      folder: where no other process writes yet.
      state: of the job.
      new: the job begins, maybe over an older one.

    Raises:
      UserError: the file of a shard is missing or damaged.
    """
    if new:
        remove_journals(folder)  # of the older job: they must not add to the new one
    folder.write(JOURNAL, state.to_bytes())
    sizes = folder.sizes()
    for shard, entry in state.entries.items():
        name = open_name(shard)
        if entry.complete and part_name(shard) not in sizes and name in sizes:
            rows = saved_rows(folder, entry)  # a crash came before the rename
            if sizes[name] != len(rows):
                folder.write(name, rows)
            folder.rename(name, part_name(shard))
    write_errors(folder, state)
    for name in folder.sizes():
        if _is_leftover(name, state):
            folder.remove(name)
    check_parts(folder, state)


def end(folder: Folder, state: State) -> None:
    """End the job, whose shards are all complete."""
    write_errors(folder, state)
    state.done = True
    folder.write(JOURNAL, state.to_bytes())
    remove_journals(folder)


def write_summary(folder: Folder, state: State, ran: Summary | None, processes: int = 1) -> Result:
    """Write `summary.json`, unless an earlier run did.

    Args:
      folder: of the job.
      state: of the job, which has ended.
      ran: counts of this run; None if nothing was left to do.
      processes: number of processes of this run.
    """
    totals, summary = state.totals, ran or Summary()
    refreshes, prefills = summary.refreshes, summary.prefills
    content = {
        **{{"rows": "answers"}.get(name, name): count for name, count in totals.items()},
        "tokens_per_step": _ratio(totals["tokens"], totals["steps"]),
        "shards": state.shards,
        **{k: v for k, v in state.header.items() if k not in ("format", "versions")},
        "versions": versions(),
        "last_run": {
            "answers": summary.answers,
            "seconds": round(summary.seconds, 3),
            "tokens_per_second": _ratio(summary.tokens, summary.seconds),
            **({"processes": processes} if processes > 1 else {}),
            **({"refreshes": refreshes.to_dict()} if refreshes.refreshed_rows else {}),
            **({"prefill": prefills.to_dict()} if prefills.wanted else {}),
        },
    }
    if ran is not None or SUMMARY not in folder.sizes():
        data = json.dumps(content, indent=2, ensure_ascii=False)
        folder.write(SUMMARY, f"{data}\n".encode())
    return Result(summary, content, ran is not None)


def remove_journals(folder: Folder) -> None:
    """Remove the processes' own journals, which say nothing that `journal` doesn't."""
    for name in journal.of_processes(folder):
        folder.remove(name)


def write_errors(folder: Folder, state: State) -> None:
    """Write the known bad records; without any, remove the file."""
    if state.bad:
        folder.write(ERRORS, "".join(f"{row}\n" for row in state.bad).encode())
    elif ERRORS in folder.sizes():
        folder.remove(ERRORS)


def check_parts(folder: Folder, state: State) -> None:
    """Refuse a complete shard whose file is missing or has another length."""
    sizes = folder.sizes()
    for shard, entry in state.entries.items():
        found = sizes.get(part_name(shard))
        if entry.complete and found != entry.bytes:
            what = "is missing" if found is None else f"has {found} bytes, not {entry.bytes}"
            raise _damaged(folder, part_name(shard), what)


def saved_rows(folder: Folder, entry: Entry) -> bytes:
    """The saved rows of an open shard; refuses a file that holds others."""
    name = open_name(entry.shard)
    rows = (folder.read(name) or b"")[: entry.bytes]
    if len(rows) != entry.bytes or hashlib.sha256(rows).hexdigest() != entry.sha256:
        raise _damaged(folder, name, "is not what the journal says")
    return rows


def _is_leftover(name: str, state: State) -> bool:
    """Whether a file is of no use to a run that goes on from this state."""
    if (part := part_number(name)) is not None:
        return not state.is_complete(part)
    if (shard := open_number(name)) is not None:
        return shard not in state.entries or state.is_complete(shard)
    if name in (JOURNAL, ERRORS) or name.partition(".")[0] == LOCK:
        return name.endswith(".new")
    # Locks of single processes: the caller has checked that they are free.
    return is_ours(name)


def _damaged(folder: Folder, name: str, what: str) -> UserError:
    return UserError(
        f"{folder.path}/{name}: {what}; restore the file, or start anew with --overwrite"
    )


def _ratio(a: float, b: float) -> float | None:
    return round(a / b, 4) if b else None
