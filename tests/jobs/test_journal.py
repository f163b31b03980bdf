"""The journal survives being cut anywhere, and tells damage from a torn end."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapjax.errors import UserError
from leapjax.jobs.journal import COUNTS, Entry, Journal
from leapjax.jobs.storage import LocalFolder
from tests.jobs.fakes import Disk


def entry(kind, shard, last, **changes):
    fields = {
        "kind": kind,
        "shard": shard,
        "first_line": 10 * shard + 1,
        "last_line": last,
        "chain": "ab",
        "bytes": 100 + last,
        "sha256": "cd",
        "errors_bytes": 0,
        "counts": dict.fromkeys(COUNTS, 1),
    }
    return Entry(**(fields | changes))


ENTRIES = [
    entry("saved", 0, 4),
    entry("saved", 0, 8),
    entry("shard", 0, 10),
    entry("shard", 1, 20),
    entry("saved", 2, 23),
]


def state(journal):
    return journal.shards, journal.last, journal.totals, journal.done, journal.sizes


def written(folder, entries):
    journal = Journal.create(folder, {"what": "ü"})
    for e in entries:
        journal.append(e)
    journal.close()
    return journal


def test_what_is_read_is_what_was_written(tmp_path):
    folder = LocalFolder(str(tmp_path))
    journal = written(folder, ENTRIES)
    again = Journal.read(folder)
    assert again.header == {"format": 1, "what": "ü"}
    assert state(again) == state(journal)
    assert again.shards == 2 and again.sizes == [110, 120]
    assert again.totals == dict.fromkeys(COUNTS, 2)
    assert again.open == ENTRIES[-1] and again.records == 3 and again.errors == 3


def test_no_journal(tmp_path):
    assert Journal.read(LocalFolder(str(tmp_path))) is None


@given(cut=st.integers(0, 3000), more=st.integers(0, 5))
def test_a_torn_end_does_not_count_and_is_written_over(cut, more):
    disk = Disk()
    written(disk, ENTRIES)
    whole = disk.read("journal")
    header = whole.index(b"\n") + 1
    cut = header + cut % (len(whole) - header + 1)
    disk.files["journal"].safe, disk.files["journal"].rest = whole[:cut], b""
    complete = whole[header:cut].count(b"\n")

    journal = Journal.read(disk)
    expected = written(Disk(), ENTRIES[:complete])
    assert state(journal) == state(expected)
    for e in ENTRIES[complete : complete + more]:
        journal.append(e)
        expected.append(e)
    assert state(Journal.read(disk)) == state(expected)
    if complete + more >= len(ENTRIES):
        assert disk.read("journal") == whole


def test_a_last_line_that_never_reached_the_disk_does_not_count(tmp_path):
    # After a power failure a file may have its length but zeros for content.
    folder = LocalFolder(str(tmp_path))
    written(folder, ENTRIES[:1])
    path = tmp_path / "journal"
    path.write_bytes(path.read_bytes() + b"\0\0\0\n")
    journal = Journal.read(folder)
    assert journal.last == ENTRIES[0]
    journal.append(ENTRIES[1])
    assert Journal.read(folder).last == ENTRIES[1]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: [lines[0], b"{", *lines[2:]], "line 2: is damaged"),
        (lambda lines: [b"{", *lines[1:]], "line 1: is damaged"),
        (lambda lines: [b"[]"], "line 1: is damaged"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], None),
        (lambda lines: [lines[0], *lines[2:4], *lines[2:]], "line 4: is damaged"),
        (lambda lines: [lines[0], *lines[4:]], "line 2: is damaged"),
        (lambda lines: [b'{"format": 2}', *lines[1:]], "has format 2"),
        (lambda lines: [b"{}", *lines[1:]], "line 1: is damaged"),
        (lambda lines: [lines[0], json.dumps({"kind": "shard"}).encode(), *lines[1:]], "line 2"),
    ],
)
def test_damage_is_told(tmp_path, change, message):
    folder = LocalFolder(str(tmp_path))
    written(folder, ENTRIES)
    path = tmp_path / "journal"
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    if message is None:  # two notes about the same shard, either of which is true
        assert Journal.read(folder).shards == 2
        return
    with pytest.raises(UserError, match=message):
        Journal.read(folder)


def test_done(tmp_path):
    folder = LocalFolder(str(tmp_path))
    journal = written(folder, ENTRIES[:4])
    journal.finish()
    assert Journal.read(folder).done


def test_after_a_write_that_failed_the_next_one_is_whole():
    disk = Disk()
    journal = written(disk, ENTRIES[:1])
    disk.fail_at, disk.error = disk.operations, OSError(28, "full")
    with pytest.raises(OSError):
        journal.append(ENTRIES[1])
    assert journal.last == ENTRIES[0]
    journal.append(ENTRIES[1])
    assert Journal.read(disk).last == ENTRIES[1]
