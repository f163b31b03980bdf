"""Writes one process's answers into the shards that it decodes, one shard after the other.

A shard becomes complete in this order, and a crash between two steps loses nothing:

1. its rows are in `shard-00007.open`, and synced;
2. an entry of kind `shard` is in the process's journal, and synced;
3. the file is renamed to `part-00007.jsonl`.

In between, every `save_seconds`, the rows are synced and an entry of kind `saved` says how much
of the open shard counts. `leapjax.jobs.folder_files` completes the rename after a crash.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from typing import Any

from leapjax.jobs import journal
from leapjax.jobs.folder_files import saved_rows
from leapjax.jobs.journal import COUNTS, Entry, State
from leapjax.jobs.names import JOURNAL, of_process, open_name, part_name
from leapjax.jobs.source import Item
from leapjax.jobs.spec import JobSpec
from leapjax.jobs.summary import counts_of
from leapjax.jsonl import to_line
from leapjax.records import to_record
from leapjax.storage import Folder, Growing
from leapjax.types import Completion


class Shards:
    """The sink of a folder job (`leapjax.jobs.loop.Sink`).

    An item's `shard` is where its record goes. The records of a shard come together, in input
    order; shards may be skipped. Methods that write raise `OSError` if they can't.

    Attributes:
      written: hash of this process's journal so far.

    Args:
      folder: of the job; other processes write other files there.
      state: of the job when the run begins.
      index: number of this process.
      spec: the job.
      ends: the ids that end an answer (`DecodeConfig.end_ids`).
    """

    def __init__(
        self, folder: Folder, state: State, index: int, spec: JobSpec, ends: tuple[int, ...]
    ):
        self._folder, self._state, self._spec, self._ends = folder, state, spec, ends
        self.written = hashlib.sha256()
        self._journal_name = of_process(JOURNAL, index)
        self._journal: Growing | None = None
        self._file: Growing | None = None
        # The record in progress.
        self._rows: list[bytes] = []
        self._error: list[str] = []
        self._row_counts: Counter[str] = Counter()
        # The open shard: `_entry` describes the settled part, whose hash is `_digest`.
        self._entry: Entry | None = None
        self._digest = hashlib.sha256()
        self._unsaved = False
        self._saved_at = time.monotonic()

    def write(self, completion: Completion) -> None:
        """Take the next answer of the record in progress."""
        record = to_record(completion, self._spec.details, self._spec.fields)
        self._rows.append(to_line(record).encode())
        self._row_counts.update(counts_of(completion, self._ends))

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Take the error of the record in progress."""
        self._error = [to_line(record).rstrip("\n")]
        self._row_counts["errors"] += 1

    def settle(self, item: Item) -> None:
        """Add the record in progress to its shard.

        Raises:
          UserError: the saved part of the shard is missing or damaged.
        """
        if self._entry is None:
            self._begin(item.shard)
        old = self._entry
        assert old is not None and old.shard == item.shard, "the shard before is not complete"
        if data := b"".join(self._rows):
            self._opened().write(data)
        self._digest.update(data)
        self._row_counts["records"] += 1
        self._entry = Entry(
            kind="saved",
            shard=item.shard,
            first_line=old.first_line or item.line,
            last_line=item.line,
            chain=item.chain,
            bytes=old.bytes + len(data),
            sha256="",  # filled in by `_note`
            counts={name: old.counts[name] + self._row_counts[name] for name in COUNTS},
            bad=(*old.bad, *self._error),
        )
        self._rows, self._error, self._row_counts = [], [], Counter()
        self._unsaved = True
        if self._entry.counts["records"] >= self._state.cut.size:
            self._complete()
        elif time.monotonic() - self._saved_at >= self._spec.save_seconds:
            self.save()

    def save(self) -> None:
        """Make the settled records survive a crash."""
        if self._unsaved:
            self._note("saved")
        self._saved_at = time.monotonic()

    def finish(self, settled: int | None = None) -> None:
        """Complete the last shard, which may hold fewer records.

        Args:
          settled: a shard of which an earlier run saved all records, but not the end.

        Raises:
          UserError: as for `settle`.
        """
        if settled is not None:
            self._begin(settled)
        if self._entry is not None:
            self._complete()

    def close(self) -> None:
        """Close the files; what is not saved is lost."""
        for file in (self._file, self._journal):
            if file is not None:
                file.close()
        self._file = self._journal = None

    def _begin(self, shard: int) -> None:
        """Open a shard: empty, or as it was saved."""
        entry = self._state.entries.get(shard)
        rows = b"" if entry is None else saved_rows(self._folder, entry)
        self._digest = hashlib.sha256(rows)
        nothing = dict.fromkeys(COUNTS, 0)
        self._entry = entry or Entry("saved", shard, 0, 0, "", 0, "", nothing)

    def _opened(self) -> Growing:
        assert self._entry is not None
        if self._file is None:
            self._file = self._folder.grow(open_name(self._entry.shard), keep=self._entry.bytes)
        return self._file

    def _complete(self) -> None:
        assert self._entry is not None
        shard = self._entry.shard
        self._note("shard")
        self._folder.rename(open_name(shard), part_name(shard))
        self._opened().close()
        self._file = self._entry = None
        self._saved_at = time.monotonic()

    def _note(self, kind: str) -> None:
        """Sync the open shard's file, then say in the journal how far it is."""
        self._opened().sync()
        assert self._entry is not None
        value = self._entry.to_json() | {"kind": kind, "sha256": self._digest.hexdigest()}
        data = journal.to_line(value)
        if self._journal is None:
            self._journal = self._folder.grow(self._journal_name)
        self._journal.write(data)
        self._journal.sync()
        self.written.update(data)
        self._unsaved = False
