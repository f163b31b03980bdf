"""How far a job is that several processes work on.

    DIR/journal              header, how the input is cut, and what earlier runs did
    DIR/journal-00003        what process 3 has done since
    DIR/shard-00007.open     a shard being filled; worth as much as its last entry says
    DIR/lock-00003           held by process 3 while it runs (process 0 has DIR/lock)

Each process has its own journal, so nobody appends to another's file. Process 0 begins a
run by writing all that is known into `journal`, in one stroke, and removing the others.
The lines are those of `leapjax.jobs.journal`, for shards in any order; each names the
shard's bad records too, so that whoever goes on with the shard has them, and there is no
file of errors before the end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs import journal as journals
from leapjax.jobs.journal import COUNTS, Entry
from leapjax.jobs.shards import ERRORS, OPEN, SUMMARY, is_ours, part_name, part_number
from leapjax.jobs.storage import Folder

_OWN = re.compile(r"journal-\d{5,}")
_OPEN = re.compile(r"shard-(\d{5,})\.open")


def own_name(index: int) -> str:
    """The file name of a process's journal."""
    return f"{journals.NAME}-{index:05d}"


def open_name(shard: int) -> str:
    """The file name of a shard that is not complete."""
    return f"shard-{shard:05d}.open"


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the records of the input are cut into shards.

    Attributes:
      shards: number of the first shards, which one process alone made.
      records: how many records these hold; every other shard holds `size`.
      size: see there.
    """

    shards: int
    records: int
    size: int

    def shard_of(self, record: int) -> int | None:
        """The shard of a record, counted from 0; None in the first ones."""
        if record < self.records:
            return None
        return self.shards + (record - self.records) // self.size

    def count(self, records: int) -> int:
        """Shards of an input of so many records."""
        return self.shards + -(-max(records - self.records, 0) // self.size)


@dataclasses.dataclass(frozen=True)
class Part:
    """How far a shard is.

    Attributes:
      entry: its latest entry.
      bad: lines of JSON, without line ends, of its bad records.
    """

    entry: Entry
    bad: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Nothing is left to do."""
        return self.entry.kind == "shard"

    def to_json(self) -> dict[str, Any]:
        """As it stands in the journal."""
        return self.entry.to_json() | {"bad": list(self.bad)}


class State:
    """How far a whole job is.

    Attributes:
      header: what the job is.
      cut: how the input is cut.
      parts: shard -> how far it is; those that nobody began are missing.
      done: the job has ended.
    """

    def __init__(self, header: dict[str, Any], cut: Cut, done: bool = False):
        self.header, self.cut, self.done = header, cut, done
        self.parts: dict[int, Part] = {}

    @property
    def shards(self) -> int:
        """Number of complete shards."""
        return sum(part.complete for part in self.parts.values())

    @property
    def totals(self) -> dict[str, int]:
        """`COUNTS` summed over complete shards."""
        entries = [part.entry for part in self.parts.values() if part.complete]
        return {name: sum(e.counts[name] for e in entries) for name in COUNTS}

    @property
    def errors(self) -> int:
        """Bad records so far."""
        return sum(part.entry.counts["errors"] for part in self.parts.values())

    def is_complete(self, shard: int) -> bool:
        """Whether a shard is complete."""
        return shard in self.parts and self.parts[shard].complete

    def bad_lines(self) -> set[int]:
        """Input lines whose records were bad."""
        return {json.loads(row)["line"] for part in self.parts.values() for row in part.bad}

    def take(self, values: Iterable[dict[str, Any]], where: str, first: int) -> None:
        """Take up a journal's entries, in any order.

        Args:
          values: what stands on its lines.
          where: how messages call it.
          first: number of the first line.

        Raises:
          UserError: an entry can't be read.
        """
        for number, value in enumerate(values, first):
            try:
                if value["kind"] == "done":
                    self.done = True
                    continue
                part = Part(Entry.from_json(value), tuple(value["bad"]))
                if part.entry.kind not in ("saved", "shard"):
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                raise journals.damaged(where, number) from None
            known = self.parts.get(part.entry.shard)
            # A shard only ever grows, so the later entry is the one that knows more.
            if known is None or _progress(known) < _progress(part):
                self.parts[part.entry.shard] = part

    def to_bytes(self) -> bytes:
        """The journal that says all this."""
        lines = [
            self.header | {"format": journals.SPREAD_FORMAT},
            {"kind": "cut", **dataclasses.asdict(self.cut)},
            *(self.parts[shard].to_json() for shard in sorted(self.parts)),
            *([{"kind": "done"}] if self.done else []),
        ]
        return b"".join(map(journals.to_line, lines))


def from_bytes(data: bytes, where: str) -> State:
    """The state that a journal of several processes tells.

    Args:
      data: its content.
      where: how messages call it.

    Raises:
      UserError: it is damaged.
    """
    return _state(journals.parse(data, where)[0], where)


def read(folder: Folder, values: list[dict[str, Any]]) -> State:
    """The state of a folder, the processes' own journals included.

    Args:
      folder: the job's.
      values: what stands in its `journal`.

    Raises:
      UserError: a journal is damaged.
      OSError: one can't be read.
    """
    state = _state(values, f"{folder.path}/{journals.NAME}")
    for name in sorted(folder.sizes()):
        if _OWN.fullmatch(name):
            where = f"{folder.path}/{name}"
            own, _ = journals.parse(folder.read(name) or b"", where, header=False)
            state.take(own, where, 1)
    return state


def from_single(folder: Folder, values: list[dict[str, Any]], size: int) -> State:
    """Take over the job of one process, its open shard included.

    Its own files stay as they are until `begin`, so that a crash before leaves that job.

    Args:
      folder: the job's.
      values: what stands in its `journal`.
      size: records of every further shard.

    Raises:
      UserError: the journal or a file that it speaks of is damaged.
      OSError: a file can't be read or written.
    """
    where = f"{folder.path}/{journals.NAME}"
    entries: dict[int, Entry] = {}
    for number, value in enumerate(values[1:], 2):
        try:
            if value["kind"] != "done":
                entries[value["shard"]] = Entry.from_json(value)
        except (KeyError, TypeError):
            raise journals.damaged(where, number) from None
    bad = _errors_by_shard(folder, entries)
    last = entries[max(entries)] if entries else None
    if last is not None and last.kind == "saved":
        data = (folder.read(OPEN) or b"")[: last.bytes]
        _check(folder, OPEN, data, last)
        folder.write(open_name(last.shard), data)
        if last.counts["records"] >= size:
            entries[last.shard] = dataclasses.replace(last, kind="shard")
    elif last is not None and folder.size(part_name(last.shard)) is None:
        # A crash came between the journal and the name.
        data = folder.read(OPEN)
        if data is not None and hashlib.sha256(data).hexdigest() == last.sha256:
            folder.write(open_name(last.shard), data)
    complete = [e for e in entries.values() if e.kind == "shard"]
    records = sum(e.counts["records"] for e in complete)
    state = State(values[0], Cut(len(complete), records, size))
    for shard, entry in entries.items():
        state.parts[shard] = Part(dataclasses.replace(entry, errors_bytes=0), bad.get(shard, ()))
    return state


def begin(folder: Folder, state: State) -> bytes:
    """Note all that is known in one journal, and clear up what it doesn't speak of.

    Args:
      folder: the job's; no other process writes there yet.
      state: of the job.

    Returns:
      The journal.

    Raises:
      UserError: a file that it speaks of is missing or damaged.
      OSError: a file can't be written.
    """
    data = state.to_bytes()
    folder.write(journals.NAME, data)
    sizes = folder.sizes()
    for shard, part in state.parts.items():
        if part.complete and part_name(shard) not in sizes and open_name(shard) in sizes:
            _check(folder, open_name(shard), folder.read(open_name(shard)) or b"", part.entry)
            folder.rename(open_name(shard), part_name(shard))
    sizes = folder.sizes()
    for name in sizes:
        if _is_leftover(name, state):
            folder.remove(name)
    check_parts(folder, state)
    return data


def check_parts(folder: Folder, state: State) -> None:
    """Compare the complete shards' files with the journal.

    Raises:
      UserError: one is missing or has another size.
    """
    sizes = folder.sizes()
    for shard, part in state.parts.items():
        found = sizes.get(part_name(shard))
        if part.complete and found != part.entry.bytes:
            what = "is missing" if found is None else f"has {found} bytes, not {part.entry.bytes}"
            raise damaged_file(folder, part_name(shard), what)


def end(folder: Folder, state: State) -> None:
    """Write the bad records' file and note the end.

    Args:
      folder: the job's; all processes have finished.
      state: of the job, every shard complete.

    Raises:
      OSError: a file can't be written.
    """
    rows = [row for shard in sorted(state.parts) for row in state.parts[shard].bad]
    if rows:
        folder.write(ERRORS, "".join(f"{row}\n" for row in rows).encode())
    else:
        folder.remove(ERRORS)
    state.done = True
    folder.write(journals.NAME, state.to_bytes())
    forget(folder)


def forget(folder: Folder) -> None:
    """Remove the processes' own journals, because `journal` says it all or soon another job."""
    for name in folder.sizes():
        if _OWN.fullmatch(name):
            folder.remove(name)


def damaged_file(folder: Folder, name: str, what: str) -> UserError:
    """The error of a file that is not what the journal says."""
    return UserError(
        f"{folder.path}/{name}: {what}; restore the file, or start anew with --overwrite"
    )


def _state(values: list[dict[str, Any]], where: str) -> State:
    try:
        cut = values[1]
        state = State(values[0], Cut(cut["shards"], cut["records"], cut["size"]))
    except (IndexError, KeyError):
        raise journals.damaged(where, 2) from None
    state.take(values[2:], where, 3)
    return state


def _progress(part: Part) -> tuple[bool, int]:
    return part.complete, part.entry.last_line


def _errors_by_shard(folder: Folder, entries: dict[int, Entry]) -> dict[int, tuple[str, ...]]:
    """The bad records of a job of one process, by shard."""
    last = entries[max(entries)] if entries else None
    if last is None or not last.errors_bytes:
        return {}
    data = (folder.read(ERRORS) or b"")[: last.errors_bytes]
    found: dict[int, tuple[str, ...]] = {}
    try:
        if len(data) < last.errors_bytes:
            raise ValueError
        # Not splitlines, which also splits at characters that JSON leaves as they are.
        for row in data.decode().split("\n")[:-1]:
            line = json.loads(row)["line"]
            shard = next(n for n, e in entries.items() if e.first_line <= line <= e.last_line)
            found[shard] = (*found.get(shard, ()), row)
    except (ValueError, KeyError, TypeError, StopIteration):
        raise damaged_file(folder, ERRORS, "is not what the journal says") from None
    return found


def _check(folder: Folder, name: str, data: bytes, entry: Entry) -> None:
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise damaged_file(folder, name, "is not what the journal says")


def _is_leftover(name: str, state: State) -> bool:
    """Whether a file is of no use to a run that goes on from this state."""
    part, open_shard = part_number(name), _OPEN.fullmatch(name)
    if part is not None:
        return not state.is_complete(part)
    if open_shard:
        known = state.parts.get(int(open_shard[1]))
        return known is None or known.complete
    if name.endswith(".new"):
        return is_ours(name)
    # Locks are of processes that are gone: the caller has looked.
    return name in (OPEN, ERRORS, SUMMARY) or name.startswith((own_name(0)[:-5], "lock-"))
