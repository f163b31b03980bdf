"""The journal: what a folder job is, and how far it has come, on lines of JSON.

    {"format": 1, "settings": {…}, "input": {…}, …}          the header, written whole
    {"kind": "saved", "shard": 0, "last_line": 312, …}       so much of the open shard is safe
    {"kind": "shard", "shard": 0, "last_line": 1000, …}      this shard is complete
    {"kind": "done"}

A line counts once its line end is on the disk. A line is written *before* what it
announces is renamed into place, so that a restart can finish the move (`Shards`).
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs.storage import Folder

NAME = "journal"
FORMAT = 1
SPREAD_FORMAT = 2  # of jobs of several processes (leapjax.jobs.spread_journal)
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
      kind: `saved`, or `shard` once it is complete.
      shard: its number, from 0.
      first_line: input line of its first record.
      last_line: input line of its last record so far.
      chain: hash of the input's lines up to there.
      bytes: of its file so far.
      sha256: of these bytes.
      errors_bytes: length of the file of bad records, over all shards.
      counts: names of `COUNTS` -> numbers, of this shard so far.
    """

    kind: str
    shard: int
    first_line: int
    last_line: int
    chain: str
    bytes: int
    sha256: str
    errors_bytes: int
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the journal."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in fields.items() if k != "counts"} | self.counts

    @staticmethod
    def from_json(value: dict[str, Any]) -> Entry:
        """The entry on a line of the journal.

        Raises:
          KeyError: a field is missing.
        """
        names = [f.name for f in dataclasses.fields(Entry) if f.name != "counts"]
        return Entry(**{n: value[n] for n in names}, counts={n: value[n] for n in COUNTS})


class Journal:
    """The journal of one folder; holds the last entry and sums, not every entry.

    Attributes:
      header: what the job is.
      shards: number of complete shards.
      last: the latest entry, None before the first.
      totals: `COUNTS` summed over complete shards.
      done: the job has ended.
      sizes: bytes of each complete shard.
    """

    def __init__(self, folder: Folder, header: dict[str, Any]):
        self.header = header
        self.shards = 0
        self.last: Entry | None = None
        self.totals = dict.fromkeys(COUNTS, 0)
        self.done = False
        self.sizes: list[int] = []
        self._folder = folder
        self._file: Any = None
        self._length = 0

    @staticmethod
    def create(folder: Folder, header: dict[str, Any]) -> Journal:
        """Begin a job, in place of whatever journal was there.

        Args:
          folder: where the job's files are.
          header: JSON-ready.

        Raises:
          OSError: it can't be written.
        """
        journal = Journal(folder, {"format": FORMAT, **header})
        data = to_line(journal.header)
        folder.write(NAME, data)
        journal._length = len(data)
        return journal

    @staticmethod
    def read(folder: Folder) -> Journal | None:
        """The journal of a folder, None if there is none.

        A torn last line, left by a crash while it was written, does not count.

        Args:
          folder: where the job's files are.

        Raises:
          UserError: damaged, or of a newer format.
          OSError: it can't be read.
        """
        found = read_values(folder)
        if found is None:
            return None
        values, length = found
        journal = Journal(folder, values[0])
        for number, value in enumerate(values[1:], 2):
            try:
                journal._take(value)
            except (KeyError, TypeError, ValueError):
                raise damaged(f"{folder.path}/{NAME}", number) from None
        journal._length = length
        return journal

    @property
    def open(self) -> Entry | None:
        """The entry of the shard that is not complete, None if nothing of it is saved."""
        return self.last if self.last and self.last.kind == "saved" else None

    @property
    def errors(self) -> int:
        """Bad records so far."""
        return self.totals["errors"] + (self.open.counts["errors"] if self.open else 0)

    @property
    def records(self) -> int:
        """Records so far, bad ones included."""
        return self.totals["records"] + (self.open.counts["records"] if self.open else 0)

    def append(self, entry: Entry) -> None:
        """Add an entry; on return it survives a crash.

        Args:
          entry: of the shard that follows the complete ones.

        Raises:
          OSError: it can't be written.
        """
        self._write(entry.to_json())

    def finish(self) -> None:
        """Note that the job has ended."""
        self._write({"kind": "done"})

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, value: dict[str, Any]) -> None:
        data = to_line(value)
        if self._file is None:
            self._file = self._folder.grow(NAME, keep=self._length)
        try:
            self._file.write(data)
            self._file.sync()
        except BaseException:
            self.close()  # half a line may be there; the next write cuts it off
            raise
        self._length += len(data)
        self._take(value)

    def _take(self, value: dict[str, Any]) -> None:
        """Count an entry.

        Raises:
          KeyError: a field is missing.
          ValueError: it does not follow the one before.
        """
        if value["kind"] == "done":
            self.done = True
            return
        entry = Entry.from_json(value)
        if entry.kind not in ("saved", "shard") or entry.shard != self.shards or self.done:
            raise ValueError(f"unexpected entry {value}")
        self.last = entry
        if entry.kind == "shard":
            self.shards += 1
            self.sizes.append(entry.bytes)
            for name, count in entry.counts.items():
                self.totals[name] += count


def read_values(folder: Folder, newest: int = FORMAT) -> tuple[list[dict[str, Any]], int] | None:
    """What stands on the lines of a folder's journal, None if there is none.

    Args:
      folder: where the job's files are.
      newest: format that the caller knows.

    Returns:
      The values, header first, and the length in bytes of the lines that count.

    Raises:
      UserError: damaged, or of a newer format.
      OSError: it can't be read.
    """
    data = folder.read(NAME)
    if data is None:
        return None
    where = f"{folder.path}/{NAME}"
    values, length = parse(data, where)
    if not values:
        raise damaged(where, 1)
    version = values[0].get("format")
    if type(version) is not int:
        raise damaged(where, 1)
    if version > newest:
        raise UserError(
            f"{where}: has format {version}, this leapjax knows {newest}; use a newer leapjax"
        )
    return values, length


def parse(data: bytes, where: str, header: bool = True) -> tuple[list[dict[str, Any]], int]:
    """What stands on a journal's lines.

    A torn last line, left by a crash while it was written, does not count.

    Args:
      data: the file's content.
      where: how messages call it.
      header: the first line was written whole with the file, so it can't be torn.

    Returns:
      The values, and the length in bytes of the lines that count.

    Raises:
      UserError: another line is damaged.
    """
    lines = data.split(b"\n")[:-1]  # what follows the last line end is torn
    values = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError
        except ValueError:
            if number == len(lines) > header:
                lines.pop()  # its bytes never reached the disk
                break
            raise damaged(where, number) from None
        values.append(value)
    return values, sum(len(line) + 1 for line in lines)


def to_line(value: dict[str, Any]) -> bytes:
    """A value as a line of the journal, line end included."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def damaged(where: str, number: int) -> UserError:
    """The error of a line that can't be read."""
    return UserError(
        f"{where} line {number}: is damaged; restore the file, or start anew with --overwrite"
    )
