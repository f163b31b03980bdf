"""The journal: what a job is and, once it has ended, what each of its shards holds.

    {"format": 4, "job": "…", "input": {…}, "options": {…}, …}   the header
    {"kind": "shard", "shard": 0, "bytes": …, …}                 each shard, once the job has ended
    {"kind": "done"}

The first process of a job creates the file with its header, and the last act of the job replaces
it. In between, the entries are in the claims (`leapjax.jobs.claims`).
"""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs.names import JOURNAL
from leapjax.jsonl import to_line
from leapjax.storage import Folder

FORMAT = 4
# Counts that every entry has for its shard; they are summed over the shards.
COUNTS: tuple[str, ...] = (
    "records",  # of the input, bad ones included
    "errors",
    "rows",
    "stopped",  # rows with finish_reason stop
    "tokens",
    "steps",
    "committed",
    "full_passes",
    "nfe",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """How far a shard is."""

    shard: int
    turn: int  # of the claim whose file holds the rows (`names.open_name`)
    complete: bool = False  # nothing of the shard is left to decode
    bytes: int = 0  # length of its rows so far
    sha256: str = ""  # of these bytes
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    bad: tuple[str, ...] = ()  # error records of its bad records, as JSON without line ends

    @property
    def records(self) -> int:
        """Records of the input that are settled, bad ones included."""
        return self.counts["records"]

    def to_json(self) -> dict[str, Any]:
        """The entry as it stands in a journal or a claim."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kind = "shard" if fields.pop("complete") else "saved"
        return {"kind": kind} | fields | fields.pop("counts") | {"bad": list(self.bad)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Entry":
        """The entry of a JSON value; `KeyError`, `TypeError` or `ValueError` if it has none."""
        if value["kind"] not in ("saved", "shard"):
            raise ValueError(f"unexpected entry {value}")
        return Entry(
            **{n: value[n] for n in ("shard", "turn", "bytes", "sha256")},
            complete=value["kind"] == "shard",
            counts={n: value[n] for n in COUNTS},
            bad=tuple(value["bad"]),
        )


def furthest(entries: Iterable[Entry]) -> Entry | None:
    """The entry of a shard that counts: the one with most records; None without any.

    >>> furthest([Entry(3, 0, complete=True), Entry(3, 1)]).turn
    0
    """
    return max(entries, key=lambda e: (e.complete, e.records, -e.turn), default=None)


class State:
    """How far a whole job is.

    `header` has its settings (`leapjax.jobs.header`).
    """

    def __init__(self, header: dict[str, Any], entries: Iterable[Entry] = (), done: bool = False):
        self.header, self.done = header, done
        # By shard; those of which nothing is saved are missing.
        self.entries = {entry.shard: entry for entry in entries}

    @property
    def job(self) -> str:
        """The job's own token, which a job that overwrites it does not have."""
        return self.header.get("job", "")

    @property
    def totals(self) -> dict[str, int]:
        """`COUNTS` summed over all shards, open ones included."""
        return {n: sum(e.counts[n] for e in self.entries.values()) for n in COUNTS}

    @property
    def bad(self) -> list[str]:
        """The error records, in the order of the input."""
        return [row for shard in sorted(self.entries) for row in self.entries[shard].bad]

    def to_bytes(self) -> bytes:
        """The content of `journal`."""
        lines = [
            self.header | {"format": FORMAT},
            *(self.entries[shard].to_json() for shard in sorted(self.entries)),
            *([{"kind": "done"}] if self.done else []),
        ]
        return "".join(map(to_line, lines)).encode()


def read(folder: Folder) -> State | None:
    """What `journal` says; None if there is no such file."""
    data = folder.read(JOURNAL)
    return None if data is None else from_bytes(data, f"{folder.path}/{JOURNAL}")


def from_bytes(data: bytes, where: str) -> State:
    """The state that the content of `journal` describes; messages call the file `where`.

    `UserError` if it is damaged or has another format.
    """
    *lines, rest = data.split(b"\n")
    values = []
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        try:
            values.append(json.loads(line))
            if not isinstance(values[-1], dict) or number > len(lines):
                raise ValueError
        except ValueError:
            raise damaged(where, number) from None
    version = values[0].get("format") if values else None
    if type(version) is not int:
        raise damaged(where, 1)
    if version > FORMAT:
        raise UserError(
            f"{where}: has format {version}, this leapjax knows {FORMAT}; use a newer leapjax"
        )
    if version < FORMAT:
        made = "leapjax 0.1" if version < 3 else "a leapjax before 0.2"
        raise UserError(
            f"{where}: has format {version}, of {made}; go on with that version, or start anew "
            "with --overwrite"
        )
    state = State(values[0])
    for number, value in enumerate(values[1:], 2):
        if value.get("kind") == "done":
            state.done = True
            continue
        try:
            entry = Entry.from_json(value)
        except (KeyError, TypeError, ValueError):
            raise damaged(where, number) from None
        state.entries[entry.shard] = entry
    return state


def damaged(where: str, number: int = 1) -> UserError:
    """The error of a line that can't be read."""
    return UserError(
        f"{where} line {number}: is damaged; restore the file, or start anew with --overwrite"
    )
