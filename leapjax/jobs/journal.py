"""The journal: what a job is, and how far each of its shards is.

    journal                                                    written whole
      {"format": 3, "input": {…}, "options": {…}, …}           the header
      {"kind": "cut", "shards": 0, "records": 0, "size": 1000} how the input is cut into shards
      {"kind": "shard", "shard": 0, …}                         one entry for each shard begun
      {"kind": "saved", "shard": 1, …}
      {"kind": "done"}                                         once the job has ended
    journal-00003                                              appended to by process 3
      {"kind": "saved", "shard": 7, …}
      {"kind": "shard", "shard": 7, …}

An entry of kind `saved` says how much of an open shard is on the disk; kind `shard` says that
the shard is complete. An entry also holds the shard's bad records. Entries may come in any order:
of several entries for a shard, the furthest one counts. An entry counts once its line end is on
the disk, and it is written before the shard's file gets its final name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs.names import JOURNAL
from leapjax.storage import Folder

FORMAT = 3
_OF_PROCESS = re.compile(rf"{JOURNAL}-\d{{5,}}")
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
    """How far a shard is.

    Attributes:
      kind: `saved`, or `shard` once the shard is complete.
      shard: number of the shard, from 0.
      first_line: input line of its first record.
      last_line: input line of its last record so far.
      chain: hash of the input's lines up to `last_line`.
      bytes: length of its file so far.
      sha256: hash of these bytes.
      counts: names of `COUNTS` -> numbers for this shard so far.
      bad: the error records of its bad records, as JSON without line ends.
    """

    kind: str
    shard: int
    first_line: int
    last_line: int
    chain: str
    bytes: int
    sha256: str
    counts: dict[str, int]
    bad: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Nothing of the shard is left to do."""
        return self.kind == "shard"

    def to_json(self) -> dict[str, Any]:
        """The entry as it stands in a journal."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | fields.pop("counts") | {"bad": list(self.bad)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Entry:
        """The entry on a line of a journal; `KeyError`, `TypeError` or `ValueError` without one."""
        names = [f.name for f in dataclasses.fields(Entry) if f.name not in ("counts", "bad")]
        entry = Entry(
            **{n: value[n] for n in names},
            counts={n: value[n] for n in COUNTS},
            bad=tuple(value["bad"]),
        )
        if entry.kind not in ("saved", "shard"):
            raise ValueError(f"unexpected entry {value}")
        return entry


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the records of the input are cut into shards.

    Attributes:
      shards: number of the first shards, which another shard size made; they are complete.
      records: records in these first shards.
      size: records of every other shard; the last one may hold fewer.
    """

    shards: int
    records: int
    size: int

    def shard_of(self, record: int) -> int | None:
        """The shard of a record, counted from 0; None in the first shards.

        >>> [Cut(2, 10, 5).shard_of(n) for n in (9, 10, 14, 15)]
        [None, 2, 2, 3]
        """
        if record < self.records:
            return None
        return self.shards + (record - self.records) // self.size

    def count(self, records: int) -> int:
        """Shards of an input with this many records."""
        return self.shards + -(-max(records - self.records, 0) // self.size)


class State:
    """How far a whole job is.

    Attributes:
      header: settings of the job (`leapjax.jobs.header`).
      cut: how the input is cut into shards.
      done: the job has ended.
      entries: shard -> its entry; shards that no process began are missing.
    """

    def __init__(self, header: dict[str, Any], cut: Cut, done: bool = False):
        self.header, self.cut, self.done = header, cut, done
        self.entries: dict[int, Entry] = {}

    @property
    def shards(self) -> int:
        """Number of complete shards."""
        return sum(entry.complete for entry in self.entries.values())

    @property
    def totals(self) -> dict[str, int]:
        """`COUNTS` summed over all shards, open ones included."""
        return {n: sum(e.counts[n] for e in self.entries.values()) for n in COUNTS}

    @property
    def bad(self) -> list[str]:
        """The error records, in the order of the input."""
        return [row for shard in sorted(self.entries) for row in self.entries[shard].bad]

    @property
    def prefix(self) -> int:
        """Number of complete shards before the first one that is not."""
        return next(n for n in range(len(self.entries) + 1) if not self.is_complete(n))

    @property
    def has_gaps(self) -> bool:
        """Whether a shard was begun although one before it is not complete."""
        return max(self.entries, default=0) > self.prefix

    def is_complete(self, shard: int) -> bool:
        """Whether a shard is complete."""
        return shard in self.entries and self.entries[shard].complete

    def resize(self, size: int) -> None:
        """Cut the rest of the input into shards of another size; the job may have no gaps."""
        last = self.entries.get(self.prefix)
        if last is not None and last.counts["records"] >= size:
            self.entries[last.shard] = dataclasses.replace(last, kind="shard")
        first = self.prefix
        records = sum(self.entries[shard].counts["records"] for shard in range(first))
        self.cut = Cut(first, records, size)
        self.header["shard_size"] = size

    def take(self, values: Iterable[dict[str, Any]], where: str, first: int = 1) -> None:
        """Add a journal's entries.

        Args:
          values: JSON values of its lines.
          where: what messages call the journal.
          first: line number of the first value.

        Raises:
          UserError: a line is damaged.
        """
        for number, value in enumerate(values, first):
            try:
                if value["kind"] == "done":
                    self.done = True
                    continue
                entry = Entry.from_json(value)
            except (KeyError, TypeError, ValueError):
                raise damaged(where, number) from None
            known = self.entries.get(entry.shard)
            # A shard only grows, so the longer entry is the later one.
            if known is None or _progress(known) < _progress(entry):
                self.entries[entry.shard] = entry

    def to_bytes(self) -> bytes:
        """The content of `journal`."""
        lines = [
            self.header | {"format": FORMAT},
            {"kind": "cut", **dataclasses.asdict(self.cut)},
            *(self.entries[shard].to_json() for shard in sorted(self.entries)),
            *([{"kind": "done"}] if self.done else []),
        ]
        return b"".join(map(to_line, lines))


def read(folder: Folder) -> State | None:
    """The state that all journals of a folder describe; None if there is no `journal`.

    Raises:
      UserError: a journal is damaged or has another format.
      OSError: a journal can't be read.
    """
    data = folder.read(JOURNAL)
    if data is None:
        return None
    state = from_bytes(data, f"{folder.path}/{JOURNAL}")
    for name in of_processes(folder):
        where = f"{folder.path}/{name}"
        state.take(parse(folder.read(name) or b"", where, appended=True), where)
    return state


def from_bytes(data: bytes, where: str) -> State:
    """The state that the content of `journal` describes.

    Args:
      data: the content.
      where: what messages call the file.

    Raises:
      UserError: the content is damaged or has another format.
    """
    values = parse(data, where)
    version = values[0].get("format") if values else None
    if type(version) is not int:
        raise damaged(where, 1)
    if version > FORMAT:
        raise UserError(
            f"{where}: has format {version}, this leapjax knows {FORMAT}; use a newer leapjax"
        )
    if version < FORMAT:
        raise UserError(
            f"{where}: has format {version}, of leapjax 0.1; go on with that version, or start "
            "anew with --overwrite"
        )
    try:
        cut = Cut(**{f.name: values[1][f.name] for f in dataclasses.fields(Cut)})
    except (IndexError, KeyError):
        raise damaged(where, 2) from None
    state = State(values[0], cut)
    state.take(values[2:], where, 3)
    return state


def of_processes(folder: Folder) -> list[str]:
    """Names of the processes' own journals in a folder."""
    return sorted(name for name in folder.sizes() if _OF_PROCESS.fullmatch(name))


def parse(data: bytes, where: str, appended: bool = False) -> list[dict[str, Any]]:
    """The JSON values on a journal's lines.

    Args:
      data: the file's content.
      where: what messages call the file.
      appended: the file was written line by line, so that a crash may have torn its last line;
        a torn line does not count.

    Raises:
      UserError: a line is damaged.
    """
    *lines, rest = data.split(b"\n")
    if rest and not appended:
        raise damaged(where, len(lines) + 1)
    values = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError
        except ValueError:
            if appended and number == len(lines):
                break  # its bytes never reached the disk
            raise damaged(where, number) from None
        values.append(value)
    return values


def to_line(value: dict[str, Any]) -> bytes:
    """A value as a line of a journal, line end included."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def damaged(where: str, number: int) -> UserError:
    """The error of a line that can't be read."""
    return UserError(
        f"{where} line {number}: is damaged; restore the file, or start anew with --overwrite"
    )


def _progress(entry: Entry) -> tuple[bool, int]:
    return entry.complete, entry.last_line
