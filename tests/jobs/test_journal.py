"""Journals survive being cut anywhere, and tell damage from a torn end."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapjax.errors import UserError
from leapjax.jobs import journal
from leapjax.jobs.journal import COUNTS, Cut, Entry, State
from leapjax.storage import LocalFolder
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
        "counts": dict.fromkeys(COUNTS, 1),
        "bad": (f'{{"line": {last}, "error": "ü"}}',),
    }
    return Entry(**(fields | changes))


ENTRIES = [
    entry("saved", 0, 4),
    entry("saved", 0, 8),
    entry("shard", 0, 10),
    entry("shard", 1, 20),
    entry("saved", 2, 23),
]


def told(state):
    return state.header, state.cut, state.entries, state.done


def written(folder, entries, appended=(), done=False):
    """A journal of these entries, and one of process 3 of those that were appended."""
    state = State({"what": "ü"}, Cut(0, 0, 10), done)
    state.entries = {e.shard: e for e in entries}
    folder.write("journal", state.to_bytes())
    file = folder.grow("journal-00003")
    for e in appended:
        file.write(journal.to_line(e.to_json()))
    file.sync()
    file.close()


def test_what_is_read_is_what_was_written(tmp_path):
    folder = LocalFolder(str(tmp_path))
    written(folder, ENTRIES[2:4], ENTRIES[4:])
    state = journal.read(folder)
    assert state.header == {"format": 3, "what": "ü"} and state.cut == Cut(0, 0, 10)
    assert state.entries == {0: ENTRIES[2], 1: ENTRIES[3], 2: ENTRIES[4]} and not state.done
    assert state.shards == 2 == state.prefix and not state.has_gaps
    assert state.totals == dict.fromkeys(COUNTS, 3)
    assert [json.loads(row)["line"] for row in state.bad] == [10, 20, 23]
    again = journal.from_bytes(state.to_bytes(), "journal")
    assert told(again) == told(state)


def test_no_journal(tmp_path):
    assert journal.read(LocalFolder(str(tmp_path))) is None


@pytest.mark.parametrize("seed", range(5))
def test_entries_in_any_order_tell_the_same(seed):
    """The journals of a run that was interrupted say again what the next one says further."""
    shuffled = random.Random(seed).sample(ENTRIES, len(ENTRIES))
    disk = Disk()
    written(disk, shuffled[:0], shuffled)
    assert journal.read(disk).entries == {0: ENTRIES[2], 1: ENTRIES[3], 2: ENTRIES[4]}


def test_gaps():
    state = State({}, Cut(0, 0, 10))
    for shard, prefix, gaps in ((2, 0, True), (0, 1, True), (1, 3, False)):
        state.entries[shard] = entry("shard", shard, 10 * shard + 10)
        assert (state.prefix, state.has_gaps) == (prefix, gaps)


@given(cut=st.integers(0, 3000))
def test_a_torn_end_does_not_count(cut):
    disk = Disk()
    written(disk, (), ENTRIES)
    whole = disk.read("journal-00003")
    cut %= len(whole) + 1
    disk.files["journal-00003"].safe = whole[:cut]
    expected = Disk()
    written(expected, (), ENTRIES[: whole[:cut].count(b"\n")])
    assert told(journal.read(disk)) == told(journal.read(expected))


def test_a_last_line_that_never_reached_the_disk_does_not_count(tmp_path):
    # After a power failure a file may have its length but zeros for content.
    folder = LocalFolder(str(tmp_path))
    written(folder, (), ENTRIES[:1])
    path = tmp_path / "journal-00003"
    path.write_bytes(path.read_bytes() + b"\0\0\0\n")
    assert journal.read(folder).entries == {0: ENTRIES[0]}


FIRST = [ENTRIES[2], ENTRIES[3], ENTRIES[4]]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: [*lines[:2], b"{", *lines[3:]], "line 3: is damaged"),
        (lambda lines: [*lines[:4], b"{"], "line 5: is damaged"),
        (lambda lines: [b"{", *lines[1:]], "line 1: is damaged"),
        (lambda lines: [b"[]"], "line 1: is damaged"),
        (lambda lines: [], "line 1: is damaged"),
        (lambda lines: lines[:1], "line 2: is damaged"),
        (lambda lines: [lines[0], *lines[2:]], "line 2: is damaged"),
        (lambda lines: [*lines[:2], b'{"kind": "shard"}', *lines[3:]], "line 3: is damaged"),
        (lambda lines: [*lines, lines[2].replace(b"shard", b"shred", 1)], "line 6: is damaged"),
        (lambda lines: [b'{"format": 99}', *lines[1:]], "has format 99.* use a newer leapjax"),
        (lambda lines: [b'{"format": 1}'], "has format 1, of leapjax 0.1; go on with that version"),
        (lambda lines: [b"{}", *lines[1:]], "line 1: is damaged"),
    ],
)
def test_damage_is_told(tmp_path, change, message):
    folder = LocalFolder(str(tmp_path))
    written(folder, FIRST)
    path = tmp_path / "journal"
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    with pytest.raises(UserError, match=f"^{path}.*{message}"):
        journal.read(folder)


def test_damage_of_a_process_s_journal_is_told(tmp_path):
    folder = LocalFolder(str(tmp_path))
    written(folder, FIRST, ENTRIES[:2])
    path = tmp_path / "journal-00003"
    path.write_bytes(path.read_bytes().replace(b'"shard"', b'"shard', 1))
    with pytest.raises(UserError, match="journal-00003 line 1: is damaged"):
        journal.read(folder)


def test_done(tmp_path):
    folder = LocalFolder(str(tmp_path))
    written(folder, FIRST[:2], done=True)
    assert journal.read(folder).done
