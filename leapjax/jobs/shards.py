"""Output as a folder of shards, each a contiguous range of the input, each whole.

    DIR/part-00000.jsonl …   complete shards
    DIR/errors.jsonl         bad records, if there are any
    DIR/journal              what the job is and how far it has come (leapjax.jobs.journal)
    DIR/shard.open           the shard being filled; worth as much as the journal says
    DIR/summary.json         at the end

A shard becomes complete in this order, and a crash between two steps loses nothing:
its rows and the bad records are synced, the journal says so, it gets its name. In
between, every `save_seconds`, the journal notes how much of the open shard is safe.
(Several processes have other files meanwhile: leapjax.jobs.spread_journal.)
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs import journal as journals
from leapjax.jobs.journal import Entry, Journal
from leapjax.jobs.open_shard import OpenShard
from leapjax.jobs.storage import Folder, Growing

OPEN = "shard.open"
ERRORS = "errors.jsonl"
SUMMARY = "summary.json"
LOCK = "lock"
_PART = re.compile(r"part-(\d{5,})\.jsonl")
# Of jobs of several processes: the journal and the lock of each, and every open shard.
_SPREAD = re.compile(r"journal-\d{5,}|lock-\d{5,}(\.\d+)?|shard-\d{5,}\.open")
_TEMPORARY = re.compile(r"(\.[0-9a-f]{32}(\.new)?)?\.new$")
_LEASE = re.compile(rf"{LOCK}\.\d+")  # of leases that were taken over (leapjax.jobs.lease)


def part_name(shard: int) -> str:
    """The file name of a shard."""
    return f"part-{shard:05d}.jsonl"


def is_ours(name: str) -> bool:
    """Whether a file name is one that a job gives."""
    # `Folder.write` and `create_new` write there first.
    whole = _TEMPORARY.sub("", name)
    ours = (OPEN, ERRORS, SUMMARY, LOCK, journals.NAME)
    return whole in ours or any(kind.fullmatch(whole) for kind in (_PART, _SPREAD, _LEASE))


def part_number(name: str) -> int | None:
    """The number of the shard that a file is, None for other files."""
    part = _PART.fullmatch(name)
    return int(part[1]) if part else None


def is_spread(name: str) -> bool:
    """Whether a file name is one that only jobs of several processes give."""
    return bool(_SPREAD.fullmatch(name))


class Shards:
    """Writes rows into shards; continues where the journal ends.

    A record's rows are given with `write` or its error with `keep_bad`, then `settle`
    says that the record is through; records come in input order.

    Args:
      folder: where the files are; nobody else writes there.
      journal: of this folder.
      shard_size: records of a shard, the bad ones included.
      save_seconds: how much work a crash may cost.
      clock: seconds, for tests.

    Raises:
      UserError: a file that the journal speaks of is missing or damaged.
      OSError: the folder can't be read or written.
    """

    def __init__(
        self,
        folder: Folder,
        journal: Journal,
        *,
        shard_size: int = 1000,
        save_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._folder, self._journal = folder, journal
        self._shard_size, self._save_seconds = shard_size, save_seconds
        self._clock = clock
        self._open = OpenShard()
        self._new_errors: list[bytes] = []  # settled, not yet in the file
        self._file: Growing | None = None
        self._errors_file: Growing | None = None
        self._errors_bytes = journal.last.errors_bytes if journal.last else 0
        self._finish_rename()
        self._check_parts()
        self._begin()
        if journal.open:
            self._reopen(journal.open)
        self._remove_leftovers()

    def bad_lines(self) -> set[int]:
        """Input lines whose records were bad, so far.

        Raises:
          UserError: the file of bad records is missing or damaged.
        """
        if not self._errors_bytes:
            return set()
        data = self._folder.read(ERRORS) or b""
        try:
            if len(data) < self._errors_bytes:
                raise ValueError
            lines = data[: self._errors_bytes].splitlines()
            return {json.loads(line)["line"] for line in lines}
        except (ValueError, KeyError, TypeError):
            raise self._damaged(ERRORS, "is shorter than the journal says") from None

    def write(self, row: bytes, counts: dict[str, int]) -> None:
        """Take a row of the record in progress.

        Args:
          row: a line of JSON, line end included.
          counts: what the row adds to `COUNTS`.
        """
        self._open.write(row, counts)

    def keep_bad(self, row: bytes) -> None:
        """Take the error of the record in progress, a line of JSON."""
        self._new_errors.append(row)
        self._open.count_error()

    def settle(self, line: int, chain: str) -> None:
        """The record in progress is through.

        Args:
          line: its line in the input.
          chain: hash of the input's lines up to there.

        Raises:
          OSError: a file can't be written.
        """
        if data := self._open.pending:
            self._opened().write(data)
        self._open.settle(line, chain)
        self._unsaved = True
        if self._open.counts["records"] >= self._shard_size:
            self._complete()
        elif self._clock() - self._saved_at >= self._save_seconds:
            self.save()

    def save(self) -> None:
        """Make what is settled survive.

        Raises:
          OSError: a file can't be written.
        """
        if self._unsaved:
            self._sync()
            self._journal.append(self._entry("saved"))
            self._unsaved = False
        self._saved_at = self._clock()

    def finish(self) -> None:
        """Complete the last shard and note the end.

        Raises:
          OSError: a file can't be written.
        """
        if self._open.counts["records"]:
            self._complete()
        self._journal.finish()

    def close(self) -> None:
        """Let go of the files; what is not saved is lost."""
        for file in (self._file, self._errors_file):
            if file is not None:
                file.close()
        self._file = self._errors_file = None
        self._journal.close()

    def _begin(self) -> None:
        """The state of an empty shard."""
        self._open.begin()
        self._unsaved = False
        self._saved_at = self._clock()

    def _opened(self) -> Growing:
        if self._file is None:
            self._file = self._folder.grow(OPEN, keep=self._open.bytes)
        return self._file

    def _sync(self) -> None:
        if self._new_errors:
            if self._errors_file is None:
                self._errors_file = self._folder.grow(ERRORS, keep=self._errors_bytes)
            data = b"".join(self._new_errors)
            self._errors_file.write(data)
            self._errors_file.sync()
            self._errors_bytes += len(data)
            self._new_errors = []
        self._opened().sync()

    def _complete(self) -> None:
        self._sync()
        if self._file is not None:
            self._file.close()
            self._file = None
        entry = self._entry("shard")
        self._journal.append(entry)
        self._folder.rename(OPEN, part_name(entry.shard))
        self._begin()

    def _entry(self, kind: str) -> Entry:
        return self._open.entry(kind, self._journal.shards, self._errors_bytes)

    def _finish_rename(self) -> None:
        """Give the last complete shard its name, where a crash came before that."""
        last = self._journal.last
        if last is None or last.kind != "shard":
            return
        name = part_name(last.shard)
        if self._folder.size(name) is None and (data := self._folder.read(OPEN)) is not None:
            if hashlib.sha256(data).hexdigest() == last.sha256:
                self._folder.rename(OPEN, name)

    def _check_parts(self) -> None:
        sizes = self._folder.sizes()
        for shard, expected in enumerate(self._journal.sizes):
            found = sizes.get(part_name(shard))
            if found != expected:
                what = "is missing" if found is None else f"has {found} bytes, not {expected}"
                raise self._damaged(part_name(shard), what)

    def _reopen(self, entry: Entry) -> None:
        """Take up the open shard where it was last saved."""
        if not self._open.take_up(entry, self._folder.read(OPEN) or b""):
            raise self._damaged(OPEN, "is not what the journal says")

    def _remove_leftovers(self) -> None:
        """Delete what an interrupted or overwritten job left and the journal does not know."""
        sizes = self._folder.sizes()
        for name in sizes:
            part = part_number(name)
            if (
                (part is not None and part >= self._journal.shards)
                or (name == OPEN and not self._journal.open)
                or (name == ERRORS and not self._errors_bytes)
                or (name == SUMMARY and not self._journal.done)
                or (name.endswith(".new") and is_ours(name))
                or is_spread(name)  # of an attempt to go on with several processes
            ):
                self._folder.remove(name)
        found = sizes.get(ERRORS, 0) if self._errors_bytes else 0
        if found < self._errors_bytes:
            raise self._damaged(ERRORS, f"has {found} bytes, the journal says {self._errors_bytes}")

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(
            f"{self._folder.path}/{name}: {what}; restore the file, or start anew with --overwrite"
        )


def clashes(names: Iterable[str]) -> list[str]:
    """Names in a folder that no job gave, so that it is somebody else's folder.

    Args:
      names: of all its files and folders.
    """
    return [name for name in names if not is_ours(name)]


def holds_output(names: Iterable[str]) -> bool:
    """Whether some of the names in a folder are output of a job."""
    return any(name in (ERRORS, SUMMARY) or part_number(name) is not None for name in names)


def summary_bytes(summary: dict[str, Any]) -> bytes:
    """The content of `summary.json`."""
    return (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode()
