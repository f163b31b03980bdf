"""A job's folder when a process comes to it, and when the job ends.

Functions raise `OSError` if a file can't be read or written.
"""

import json
from collections.abc import Callable
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs import journal
from leapjax.jobs.header import differences, other_version, versions
from leapjax.jobs.journal import State
from leapjax.jobs.names import (
    ERRORS,
    JOURNAL,
    SUMMARY,
    is_ours,
    is_result,
    part_name,
    part_number,
    process_token,
)
from leapjax.jobs.spec import JobSpec
from leapjax.jobs.summary import Summary
from leapjax.storage import Folder


def to_resume(folder: Folder, spec: JobSpec) -> State | None:
    """What the journal of the job to go on with says, None to begin one; writes nothing.

    `UserError` if the flags allow neither, or the journal can't be read.
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

    `header` is that of a new job with this `spec`; `note` takes a line for the user about what
    need not agree.
    """
    if changes := differences(old.header, header):
        raise UserError(
            f"output {spec.output}: can't be resumed, because {' and '.join(changes)}; "
            "use what it was begun with, or start anew with --overwrite"
        )
    if old.done:
        return
    if line := other_version(old.header):
        note(line)
    if spec.shard_size not in (None, old.header["shard_size"]):
        note(f"the job goes on with its --shard-size, {old.header['shard_size']}")


def check_errors(spec: JobSpec, state: State) -> None:
    """Refuse to go on with more bad records than are allowed."""
    if (errors := state.totals["errors"]) > spec.max_errors:
        raise UserError(
            f"output {spec.output}: bad records set aside so far: {errors}, but "
            f"--max-errors is {spec.max_errors}; resume with at least that many"
        )


def check_parts(folder: Folder, state: State, parts: dict[int, int]) -> None:
    """Refuse a complete shard whose file has another length or, once the job has ended, is missing.

    `parts` has the bytes of each complete shard's file.
    """
    for shard, entry in state.entries.items():
        size = parts.get(shard)
        if size is None and state.done:
            raise damaged(folder, part_name(shard), "is missing")
        if entry.complete and size not in (None, entry.bytes):
            raise damaged(folder, part_name(shard), f"has {size} bytes, not {entry.bytes}")


def damaged(folder: Folder, name: str, what: str) -> UserError:
    """The error of a file of the job that is not what it was."""
    return UserError(
        f"{folder.path}/{name}: {what}; restore the file, or start anew with --overwrite"
    )


def clear(folder: Folder) -> None:
    """Remove an older job's files except its journal, and those of living processes."""
    # Shards first: a shard without its claim would be unknown if a crash came in between.
    for name in sorted(folder.sizes(), key=lambda name: (part_number(name) is None, name)):
        if is_ours(name) and name != JOURNAL and process_token(name) is None:
            folder.remove(name)


def tidy(folder: Folder) -> None:
    """Remove what is of no use once the job has ended."""
    for name in folder.sizes():
        if is_ours(name) and not is_result(name):
            folder.remove(name)


def end(
    folder: Folder, state: State, ran: list[Summary], chip_hour: float | None = None
) -> dict[str, Any]:
    """End the job, whose shards are all complete; gives the content of `summary.json`.

    `ran` has the counts of the processes that are there; `chip_hour` is the price of one.
    """
    if state.bad:
        folder.write(ERRORS, "".join(f"{row}\n" for row in state.bad).encode())
    elif ERRORS in folder.sizes():
        folder.remove(ERRORS)
    content = write_summary(folder, state, ran, chip_hour)
    state.done = True
    folder.write(JOURNAL, state.to_bytes())
    tidy(folder)
    return content


def summary_of(folder: Folder, state: State) -> dict[str, Any]:
    """The content of `summary.json` of a job that has ended."""
    data = folder.read(SUMMARY)
    return write_summary(folder, state, []) if data is None else json.loads(data)


def write_summary(
    folder: Folder, state: State, ran: list[Summary], chip_hour: float | None = None
) -> dict[str, Any]:
    """Write `summary.json`, and give its content; arguments as for `end`."""
    totals, last = state.totals, sum_of(ran)
    hours = sum(one.seconds * one.chips for one in ran) / 3600
    content = {
        **{{"rows": "answers"}.get(name, name): count for name, count in totals.items()},
        "tokens_per_step": _ratio(totals["tokens"], totals["steps"]),
        "shards": len(state.entries),
        **{k: v for k, v in state.header.items() if k not in ("format", "job", "versions")},
        "versions": versions(),
        "last_run": {
            "answers": last.answers,
            "seconds": round(last.seconds, 3),
            "tokens_per_second": _ratio(last.tokens, last.seconds),
            "chip_hours": round(hours, 6),
            **({} if chip_hour is None else {"price": round(hours * chip_hour, 6)}),
            **({"processes": len(ran)} if len(ran) > 1 else {}),
            **({"refreshes": last.refreshes.to_dict()} if last.refreshes.refreshed_rows else {}),
            **({"prefill": last.prefills.to_dict()} if last.prefills.wanted else {}),
        },
    }
    data = json.dumps(content, indent=2, ensure_ascii=False)
    folder.write(SUMMARY, f"{data}\n".encode())
    return content


def sum_of(ran: list[Summary]) -> Summary:
    """The counts of processes that ran at the same time."""
    total = Summary()
    for one in ran:
        for name in ("answers", "tokens", "steps", "committed", "edits"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
        total.refreshes += one.refreshes
        total.prefills += one.prefills
        total.seconds = max(total.seconds, one.seconds)
    return total


def _ratio(a: float, b: float) -> float | None:
    return round(a / b, 4) if b else None
