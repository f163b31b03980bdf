"""The shard that is being filled: what is settled of it, and the record that is not yet."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Protocol

from leapjax.jobs.journal import COUNTS, Entry


class OpenShard:
    """Counts, lines and hash of a shard, for its journal entries.

    A record's rows are given with `write` or its error with `count_error`; `settle` says that
    the record is through.

    Attributes:
      bytes: of its file so far.
      counts: names of `COUNTS` -> numbers so far.
    """

    def __init__(self):
        self._rows: list[bytes] = []  # of the record that is not settled
        self._row_counts = dict.fromkeys(COUNTS, 0)
        self.begin()

    def begin(self) -> None:
        """An empty shard; the record in progress stays, and belongs to it."""
        self.bytes, self._digest = 0, hashlib.sha256()
        self.counts = dict.fromkeys(COUNTS, 0)
        self._first_line = self._last_line = 0
        self._chain = ""

    def take_up(self, entry: Entry, data: bytes) -> bool:
        """Go on where a shard was last saved.

        Args:
          entry: that was noted then.
          data: what its file holds.

        Returns:
          Whether the data is what the entry says.
        """
        saved = data[: entry.bytes]
        self.bytes, self._digest = entry.bytes, hashlib.sha256(saved)
        self.counts = dict(entry.counts)
        self._first_line, self._last_line = entry.first_line, entry.last_line
        self._chain = entry.chain
        return len(saved) == entry.bytes and self._digest.hexdigest() == entry.sha256

    def write(self, row: bytes, counts: dict[str, int]) -> None:
        """Take a row of the record in progress.

        Args:
          row: a line of JSON, line end included.
          counts: what the row adds to `COUNTS`.
        """
        self._rows.append(row)
        for name, count in counts.items():
            self._row_counts[name] += count

    def count_error(self) -> None:
        """The record in progress is bad."""
        self._row_counts["errors"] += 1

    @property
    def pending(self) -> bytes:
        """The rows of the record in progress, for the shard's file."""
        return b"".join(self._rows)

    def settle(self, line: int, chain: str) -> None:
        """The record in progress is through, and its rows are in the file.

        Args:
          line: its line in the input.
          chain: hash of the input's lines up to there.
        """
        data, self._rows = self.pending, []
        self._digest.update(data)
        self.bytes += len(data)
        self._row_counts["records"] += 1
        for name, count in self._row_counts.items():
            self.counts[name] += count
        self._row_counts = dict.fromkeys(COUNTS, 0)
        self._first_line = self._first_line or line
        self._last_line, self._chain = line, chain

    def entry(self, kind: str, shard: int, errors_bytes: int = 0) -> Entry:
        """How far it is, for the journal.

        Args:
          kind: `saved` or `shard`.
          shard: its number.
          errors_bytes: length of the file of bad records.
        """
        return Entry(
            kind=kind,
            shard=shard,
            first_line=self._first_line,
            last_line=self._last_line,
            chain=self._chain,
            bytes=self.bytes,
            sha256=self._digest.hexdigest(),
            errors_bytes=errors_bytes,
            counts=dict(self.counts),
        )


class Saves(Protocol):
    """What can be saved and closed."""

    def save(self) -> None:
        """Make what is settled survive."""

    def close(self) -> None:
        """Let go of the files."""


@contextlib.contextmanager
def kept(shards: Saves) -> Iterator[None]:
    """Close shards at the end; if the work fails, save first what is settled.

    Not after an OSError: then the folder itself fails.
    """
    try:
        yield
    except OSError:
        raise
    except Exception:
        with contextlib.suppress(OSError):
            shards.save()
        raise
    finally:
        shards.close()
