"""The shards that one of several processes fills, one after the other.

As in `leapjax.jobs.shards`, but shards come with gaps, and the files are those of
`leapjax.jobs.spread_journal`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

from leapjax.jobs import journal as journals
from leapjax.jobs.open_shard import OpenShard
from leapjax.jobs.shards import part_name
from leapjax.jobs.spread_journal import Part, State, damaged_file, open_name, own_name
from leapjax.jobs.storage import Folder, Growing


class SpreadShards:
    """Writes rows into the shards of one process; continues where the journals end.

    A record's rows are given with `write` or its error with `keep_bad`, then `settle`
    says that the record is through; a shard's records come together, in input order.

    Attributes:
      written: hash of this process's journal so far.

    Args:
      folder: where the files are.
      state: of the job, as the run began.
      index: of the process.
      save_seconds: how much work a crash may cost.
      clock: seconds, for tests.

    Raises:
      OSError: the folder can't be written.
    """

    def __init__(
        self,
        folder: Folder,
        state: State,
        index: int,
        *,
        save_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._folder, self._state, self._save_seconds = folder, state, save_seconds
        self._clock = clock
        self._open = OpenShard()
        self._bad: list[str] = []
        self._row_bad: list[str] = []  # of the record that is not settled
        self._shard: int | None = None
        self._file: Growing | None = None
        self._saved_at = self._clock()
        self._unsaved = False
        self.written = hashlib.sha256()
        self._journal = folder.grow(own_name(index))

    def write(self, row: bytes, counts: dict[str, int]) -> None:
        """Take a row of the record in progress.

        Args:
          row: a line of JSON, line end included.
          counts: what the row adds to `COUNTS`.
        """
        self._open.write(row, counts)

    def keep_bad(self, row: bytes) -> None:
        """Take the error of the record in progress, a line of JSON."""
        self._row_bad.append(row.decode().rstrip("\n"))
        self._open.count_error()

    def settle(self, shard: int, line: int, chain: str) -> None:
        """The record in progress is through.

        Args:
          shard: to which it belongs.
          line: its line in the input.
          chain: hash of the input's lines up to there.

        Raises:
          UserError: what an earlier run left of the shard is missing or damaged.
          OSError: a file can't be written.
        """
        if shard != self._shard:
            self._begin(shard)
        if data := self._open.pending:
            self._opened().write(data)
        self._open.settle(line, chain)
        self._bad += self._row_bad
        self._row_bad, self._unsaved = [], True
        if self._open.counts["records"] >= self._state.cut.size:
            self._complete()
        elif self._clock() - self._saved_at >= self._save_seconds:
            self.save()

    def save(self) -> None:
        """Make what is settled survive.

        Raises:
          OSError: a file can't be written.
        """
        if self._unsaved:
            self._opened().sync()
            self._note("saved")
            self._unsaved = False
        self._saved_at = self._clock()

    def finish(self, settled: int | None = None) -> None:
        """Complete the last shard, which may be short.

        Args:
          settled: a shard of which an earlier run settled every record.

        Raises:
          UserError: as for `settle`.
          OSError: a file can't be written.
        """
        if settled is not None:
            self._begin(settled)
        if self._shard is not None:
            self._complete()

    def close(self) -> None:
        """Let go of the files; what is not saved is lost."""
        for file in (self._file, self._journal):
            if file is not None:
                file.close()
        self._file = None

    def _begin(self, shard: int) -> None:
        """Take up a shard, where it was last saved or empty."""
        assert self._shard is None, "the shard before is not complete"
        part = self._state.parts.get(shard)
        self._open.begin()
        self._bad = []
        if part is not None:
            self._take_up(part)
        self._shard = shard

    def _take_up(self, part: Part) -> None:
        entry = part.entry
        name = open_name(entry.shard)
        if not self._open.take_up(entry, self._folder.read(name) or b""):
            raise damaged_file(self._folder, name, "is not what the journal says")
        self._bad = list(part.bad)

    def _opened(self) -> Growing:
        assert self._shard is not None
        if self._file is None:
            self._file = self._folder.grow(open_name(self._shard), keep=self._open.bytes)
        return self._file

    def _complete(self) -> None:
        assert self._shard is not None
        self._opened().sync()
        self._note("shard")
        assert self._file is not None
        self._file.close()
        self._file = None
        self._folder.rename(open_name(self._shard), part_name(self._shard))
        self._shard, self._unsaved = None, False
        self._saved_at = self._clock()

    def _note(self, kind: str) -> None:
        assert self._shard is not None
        entry = self._open.entry(kind, self._shard)
        value: dict[str, Any] = Part(entry, tuple(self._bad)).to_json()
        data = journals.to_line(value)
        self._journal.write(data)
        self._journal.sync()
        self.written.update(data)
