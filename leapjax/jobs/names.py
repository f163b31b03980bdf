"""Names of the files in a job's folder; `leapjax.jobs.job` says who writes which and when."""

from __future__ import annotations

import re

JOURNAL = "journal"
ERRORS = "errors.jsonl"
SUMMARY = "summary.json"
LOCK = "lock"
_PART = re.compile(r"part-(\d{5,})\.jsonl")
_OPEN = re.compile(r"shard-(\d{5,})\.open")
_OURS = re.compile(
    rf"({_PART.pattern}|{_OPEN.pattern}|errors\.jsonl|summary\.json"
    r"|journal(-\d{5,})?|lock(-\d{5,})?(\.\d+)?"
    r"|shard\.open)"  # of leapjax 0.1
    # `Folder.write` and `Folder.create_new` write to a temporary name first.
    r"((\.[0-9a-f]{32}(\.new)?)?\.new)?"
)


def of_process(name: str, index: int) -> str:
    """The journal or the lock of one process.

    Args:
      name: `JOURNAL` or `LOCK`.
      index: the process, from 0.

    >>> of_process(JOURNAL, 3)
    'journal-00003'
    """
    return f"{name}-{index:05d}"


def part_name(shard: int) -> str:
    """The file of a complete shard, such as `part-00007.jsonl`."""
    return f"part-{shard:05d}.jsonl"


def open_name(shard: int) -> str:
    """The file of a shard that is not complete, such as `shard-00007.open`."""
    return f"shard-{shard:05d}.open"


def part_number(name: str) -> int | None:
    """The shard whose complete file has this name; None for other files.

    >>> part_number("part-00007.jsonl"), part_number("journal")
    (7, None)
    """
    found = _PART.fullmatch(name)
    return int(found[1]) if found else None


def open_number(name: str) -> int | None:
    """The shard whose incomplete file has this name; None for other files."""
    found = _OPEN.fullmatch(name)
    return int(found[1]) if found else None


def is_ours(name: str) -> bool:
    """Whether a job, of this version or of 0.1, gives files this name.

    >>> [is_ours(name) for name in ("lock-00003.1", "journal.new", "thesis.tex")]
    [True, True, False]
    """
    return bool(_OURS.fullmatch(name))
