"""Names of the files in a job's folder; `leapjax.jobs.job` says who writes which and when."""

import re

JOURNAL = "journal"
ERRORS = "errors.jsonl"
SUMMARY = "summary.json"
_PART = re.compile(r"part-(\d{5,})\.jsonl")
_CLAIM = re.compile(r"claim-(\d{5,})\.(\d+)")
_OPEN = re.compile(r"shard-(\d{5,})\.(\d+)\.open")
_PROCESS = re.compile(r"process-([0-9a-f]{12})")
_OURS = re.compile(
    rf"({_PART.pattern}|{_CLAIM.pattern}|{_OPEN.pattern}|{_PROCESS.pattern}"
    r"|errors\.jsonl|summary\.json|journal"
    # Of earlier versions.
    r"|journal-\d{5,}|lock(-\d{5,})?(\.\d+)?|shard-\d{5,}\.open|shard\.open)"
    # `Folder.write` and `Folder.create_new` write to a temporary name first.
    r"((\.[0-9a-f]{32}(\.new)?)?\.new)?"
)


def part_name(shard: int) -> str:
    """The file of a complete shard, such as `part-00007.jsonl`."""
    return f"part-{shard:05d}.jsonl"


def claim_name(shard: int, turn: int) -> str:
    """The file by which a process claims a shard, such as `claim-00007.0`."""
    return f"claim-{shard:05d}.{turn}"


def open_name(shard: int, turn: int) -> str:
    """The rows of a shard that is not complete, such as `shard-00007.0.open`."""
    return f"shard-{shard:05d}.{turn}.open"


def process_name(token: str) -> str:
    """The file that says that a process is alive, such as `process-0123456789ab`."""
    return f"process-{token}"


def part_number(name: str) -> int | None:
    """The shard whose complete file has this name; None for other files.

    >>> part_number("part-00007.jsonl"), part_number("journal")
    (7, None)
    """
    found = _PART.fullmatch(name)
    return int(found[1]) if found else None


def claim_number(name: str) -> tuple[int, int] | None:
    """The shard and the turn of a claim with this name; None for other files.

    >>> claim_number("claim-00007.2"), claim_number("claim-00007.2.new")
    ((7, 2), None)
    """
    found = _CLAIM.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def process_token(name: str) -> str | None:
    """The process whose file has this name; None for other files."""
    found = _PROCESS.fullmatch(name)
    return found[1] if found else None


def is_ours(name: str) -> bool:
    """Whether a job, of this version or an earlier one, gives files this name.

    >>> [is_ours(name) for name in ("claim-00003.1", "journal.new", "thesis.tex")]
    [True, True, False]
    """
    return bool(_OURS.fullmatch(name))


def is_result(name: str) -> bool:
    """Whether a file stays in the folder once the job has ended.

    >>> [is_result(name) for name in ("part-00007.jsonl", "journal", "claim-00003.1")]
    [True, True, False]
    """
    return name in (JOURNAL, ERRORS, SUMMARY) or part_number(name) is not None
