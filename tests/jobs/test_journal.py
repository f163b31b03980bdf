"""What journals and claims say, and how damage is told."""

import hashlib
import itertools
import json

import pytest

from leapjax.errors import UserError
from leapjax.jobs import folder_files, journal
from leapjax.jobs.claims import Claims
from leapjax.jobs.journal import COUNTS, Entry, State, furthest
from leapjax.jobs.summary import Summary
from leapjax.storage import LocalFolder


def entry(shard, records, turn=0, complete=False, **changes):
    counts = dict.fromkeys(COUNTS, 1) | {"records": records}
    bad = (f'{{"line": {10 * shard + records}, "error": "ü"}}',)
    return Entry(shard, turn, complete, 100 + records, "cd", counts, bad, **changes)


ENTRIES = [entry(0, 10, complete=True), entry(1, 10, 2, complete=True), entry(2, 3)]


def written(folder, entries, done=False):
    folder.write("journal", State({"what": "ü", "job": "j"}, entries, done).to_bytes())


def test_what_is_read_is_what_was_written(tmp_path):
    folder = LocalFolder(str(tmp_path))
    assert journal.read(folder) is None
    for done in (False, True):
        written(folder, ENTRIES, done)
        state = journal.read(folder)
        assert state.header == {"format": 4, "what": "ü", "job": "j"} and state.job == "j"
        assert state.entries == {e.shard: e for e in ENTRIES} and state.done == done
        assert state.totals == dict.fromkeys(COUNTS, 3) | {"records": 23}
        assert [json.loads(row)["line"] for row in state.bad] == [10, 20, 23]
        assert journal.from_bytes(state.to_bytes(), "").to_bytes() == state.to_bytes()


def test_the_furthest_entry_of_a_shard_counts():
    far = [entry(0, 2, 3), entry(0, 5, 1), entry(0, 10, 0), entry(0, 10, 2, complete=True)]
    for entries in itertools.permutations(far):
        assert furthest(entries).turn == 2 and furthest(entries[:1]) == entries[0]
    assert furthest(far[:3]).turn == 0 and furthest([]) is None


def test_of_two_complete_shards_the_one_in_place_counts(tmp_path):
    """A process that was taken for dead may complete a shard, too, on other devices."""
    folder = LocalFolder(str(tmp_path))
    for turn, digest in enumerate(["cd", hashlib.sha256(b"rows").hexdigest()]):
        value = entry(4, 10, turn, complete=True).to_json() | {"sha256": digest}
        content = json.dumps({"job": "j", "owner": "o"} | value)
        (tmp_path / f"claim-00004.{turn}").write_text(content)
    (tmp_path / "part-00004.jsonl").write_bytes(b"rows")
    claims = Claims(folder, None, "j")
    (found,) = claims.entries(claims.look())
    assert found.turn == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: [*lines[:2], b"{", *lines[3:]], "line 3: is damaged"),
        (lambda lines: [b"{", *lines[1:]], "line 1: is damaged"),
        (lambda lines: [b"[]"], "line 1: is damaged"),
        (lambda lines: [], "line 1: is damaged"),
        (lambda lines: [*lines[:1], b'{"kind": "shard"}', *lines[2:]], "line 2: is damaged"),
        (lambda lines: [*lines, lines[1].replace(b"shard", b"shred", 1)], "line 5: is damaged"),
        (lambda lines: [b'{"format": 99}', *lines[1:]], "has format 99.* use a newer leapjax"),
        (lambda lines: [b'{"format": 1}'], "has format 1, of leapjax 0.1; go on with that version"),
        (lambda lines: [b'{"format": 3}'], "has format 3, of a leapjax before 0.2; go on with"),
        (lambda lines: [b"{}", *lines[1:]], "line 1: is damaged"),
    ],
)
def test_damage_is_told(tmp_path, change, message):
    folder = LocalFolder(str(tmp_path))
    written(folder, ENTRIES)
    path = tmp_path / "journal"
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    with pytest.raises(UserError, match=f"^{path}.*{message}"):
        journal.read(folder)


def test_a_torn_end_is_damage(tmp_path):
    """The file is only ever replaced whole."""
    folder = LocalFolder(str(tmp_path))
    written(folder, ENTRIES)
    path = tmp_path / "journal"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="line 4: is damaged"):
        journal.read(folder)


def test_a_summary_says_what_its_processes_cost(tmp_path):
    folder, state = LocalFolder(str(tmp_path)), State({"what": "ü", "job": "j"}, ENTRIES)
    ran = [Summary(seconds=1800, chips=4), Summary(seconds=900, chips=8)]
    last = folder_files.write_summary(folder, state, ran, 2.5)["last_run"]
    assert last["chip_hours"] == 4 and last["price"] == 10
    assert "price" not in folder_files.write_summary(folder, state, ran)["last_run"]
