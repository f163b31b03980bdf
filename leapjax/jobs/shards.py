"""Writes one process's answers into the shards that it has claimed, one shard after the other.

A shard becomes complete in this order, and a crash between two steps loses nothing:

1. its rows are in `shard-00007.0.open`, and synced;
2. its claim says that the shard is complete;
3. the file gets the name `part-00007.jsonl`, unless a file has it.

In between, every `save_seconds`, the rows are synced and the claim says how much of the open shard
counts. The next owner completes the last step after a crash.
"""

import contextlib
import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs.claims import Claim
from leapjax.jobs.journal import COUNTS, Entry
from leapjax.jobs.names import open_name, part_name
from leapjax.jobs.source import Item
from leapjax.jobs.spec import JobSpec
from leapjax.jobs.summary import counts_of
from leapjax.jsonl import to_line
from leapjax.records import to_record
from leapjax.storage import Folder, Growing
from leapjax.types import Completion


class Shard:
    """The rows of a shard of `records` records, which this process has claimed.

    Making one checks the rows that the claim goes on from: `UserError` if they are missing or
    damaged. Methods that write raise `OSError` if they can't. Once the claim is lost, they do
    nothing.
    """

    def __init__(self, folder: Folder, claim: Claim, records: int):
        self._folder, self.claim, self._records = folder, claim, records
        self.entry = claim.before or Entry(claim.shard, claim.turn)  # how far the shard is
        self._earlier = b"" if claim.before is None else self._saved_rows(claim.before)
        self._digest = hashlib.sha256(self._earlier)
        self._file: Growing | None = None
        self._saved_at, self._unsaved = time.monotonic(), False

    @property
    def left(self) -> int:
        """Records that are not settled yet."""
        return self._records - self.entry.records

    def add(self, rows: bytes, counts: Counter[str], bad: list[str]) -> None:
        """Add the rows, counts and error of one record."""
        if self.claim.lost:
            return
        if rows:
            self._opened().write(rows)
        self._digest.update(rows)
        old = self.entry
        self.entry = dataclasses.replace(
            old,
            bytes=old.bytes + len(rows),
            counts={name: old.counts[name] + counts[name] for name in COUNTS},
            bad=(*old.bad, *bad),
        )
        self._unsaved = True

    def save(self, seconds: float = 0.0) -> None:
        """Make the settled records survive a crash, unless the last save is newer than this."""
        if self._unsaved and time.monotonic() - self._saved_at >= seconds:
            self._note(complete=False)

    def complete(self) -> None:
        """End the shard, whose records are all settled."""
        name = open_name(self.entry.shard, self.entry.turn)
        if not self.entry.complete:
            name = open_name(self.entry.shard, self.claim.turn)
            self._note(complete=True)
        if not self.claim.lost:
            # It is gone if another process, which took this one for dead, was faster.
            with contextlib.suppress(FileNotFoundError):
                self._folder.rename_new(name, part_name(self.entry.shard))
        self.close()

    def close(self) -> None:
        """Close the file; what is not saved is lost."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _saved_rows(self, entry: Entry) -> bytes:
        name = open_name(entry.shard, entry.turn)
        rows = (self._folder.read(name) or b"")[: entry.bytes]
        if len(rows) == entry.bytes and hashlib.sha256(rows).hexdigest() == entry.sha256:
            return rows
        what = f"{name}: is not what the claim says"
        if entry.complete:
            what = f"{part_name(entry.shard)}: is missing"
        raise UserError(
            f"{self._folder.path}/{what}; restore the file, or start anew with --overwrite"
        )

    def _opened(self) -> Growing:
        if self._file is None:
            self._file = self._folder.grow(open_name(self.claim.shard, self.claim.turn))
            if self._earlier:
                self._file.write(self._earlier)
                self._earlier = b""
        return self._file

    def _note(self, complete: bool) -> None:
        """Sync the file, then say in the claim how far the shard is."""
        if not self.claim.is_held():
            return
        self._opened().sync()
        self.entry = dataclasses.replace(
            self.entry, turn=self.claim.turn, complete=complete, sha256=self._digest.hexdigest()
        )
        if self.claim.save(self.entry) and self.claim.before is not None:
            self.claim.remove_earlier()
            self.claim.before = None
        self._saved_at, self._unsaved = time.monotonic(), False


class Shards:
    """The sink of a folder job (`leapjax.jobs.loop.Sink`).

    An item's `shard` is the `Shard` that its record goes to. The records of a shard come together,
    in input order. `ends` are the ids that end an answer (`DecodeConfig.end_ids`); `completing` is
    called before a shard is completed.
    """

    def __init__(self, spec: JobSpec, ends: tuple[int, ...], completing: Callable[[], None]):
        self._spec, self._ends, self._completing = spec, ends, completing
        self._open: Shard | None = None
        # The record in progress.
        self._rows: list[bytes] = []
        self._error: list[str] = []
        self._counts: Counter[str] = Counter()

    def write(self, completion: Completion) -> None:
        """Take the next answer of the record in progress."""
        record = to_record(completion, self._spec.details, self._spec.fields)
        self._rows.append(to_line(record).encode())
        self._counts.update(counts_of(completion, self._ends))

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Take the error of the record in progress."""
        self._error = [to_line(record).rstrip("\n")]
        self._counts["errors"] += 1

    def settle(self, item: Item) -> None:
        """Add the record in progress to its shard."""
        shard = self._open = item.shard
        self._counts["records"] += 1
        shard.add(b"".join(self._rows), self._counts, self._error)
        self._rows, self._error, self._counts = [], [], Counter()
        if shard.left:
            shard.save(self._spec.save_seconds)
        else:
            self._completing()
            shard.complete()

    def save(self) -> None:
        """Make the settled records survive a crash."""
        if self._open is not None:
            self._open.save()

    def close(self) -> None:
        """Close the file; what is not saved is lost."""
        if self._open is not None:
            self._open.close()
