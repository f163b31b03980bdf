"""Where the shards of an input begin, so that a process can read any of them, in any order."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from leapjax.errors import UserError
from leapjax.idset import IdSet
from leapjax.jobs.source import Input, Item
from leapjax.jsonl import parse_line
from leapjax.records import Intake, record_id


class _Range(NamedTuple):
    """The lines of one shard."""

    offset: int  # bytes before its first record
    line: int  # number of its first record's line
    records: int
    digest: bytes  # hash of these records' lines


class Index:
    """The shards of an input, `size` records each, from one reading of up to `limit` records.

    Takes some hundred bytes a shard; while it is made, also sixteen bytes a record.
    """

    def __init__(self, source: Input, size: int, limit: int | None):
        self._source, self._limit, self.size = source, limit, size
        self._ranges: list[_Range] = []
        seen, self._twice = IdSet(), IdSet()
        records = 0
        digest, first = hashlib.blake2b(), (0, 0)
        for line, text, offset in source.lines():
            if limit is not None and records >= limit:
                continue
            if records % size == 0:
                digest, first = hashlib.blake2b(digest_size=16), (offset, line)
            digest.update(text)
            records += 1
            own = _id_of(text, line)
            if own is not None and not seen.add(own):
                self._twice.add(own)
            if records % size == 0:
                self._ranges.append(_Range(*first, size, digest.digest()))
        if records % size:
            self._ranges.append(_Range(*first, records % size, digest.digest()))
        self.records, self.info = records, source.info()

    def __len__(self) -> int:
        return len(self._ranges)

    def count(self, shard: int) -> int:
        """Records of a shard."""
        return self._ranges[shard].records

    def repeated(self, intake: Intake) -> set[int]:
        """Numbers of the lines of good records (`intake` says which) with an earlier one's id."""
        found, taken = set(), set()
        shards = range(len(self)) if len(self._twice) else ()
        for item in (item for shard in shards for item in self.items(shard)):
            own = _id_of(item.given, item.line)
            if own is None or own not in self._twice:
                continue
            with contextlib.suppress(UserError):
                intake.check(parse_line(item.given, ""), item.line)
                if own in taken:
                    found.add(item.line)
                taken.add(own)
        return found

    def items(self, shard: int, skip: int = 0) -> Iterator[Item]:
        """The records of a shard, without the first `skip`."""
        place, source = self._ranges[shard], self._source
        ends = self._limit is None and shard == len(self) - 1  # nothing may follow
        digest, count = hashlib.blake2b(digest_size=16), 0
        last = None
        for line, text, _ in source.lines(place.offset, place.line):
            digest.update(text)
            count += 1
            if count > place.records:
                break
            if last is not None:
                yield last
            last = Item(line, f"{source.name} line {line}", text) if count > skip else None
            if count == place.records and not ends:
                break
        if digest.digest() != place.digest:
            raise UserError(
                f"input {source.name}: changed while it was read; restore it and run again with "
                "--resume, or start anew with --overwrite"
            )
        if last is not None:
            yield last


def _id_of(text: bytes, line: int) -> str | None:
    """The id of a record as a string; None if the line holds no record."""
    try:
        return str(record_id(parse_line(text, "").get("id"), line))
    except UserError:
        return None
