"""Shards of an input, read in any order."""

import bz2
import gzip
import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapjax import storage
from leapjax.errors import UserError
from leapjax.jobs.index import Index
from leapjax.jobs.source import Input
from leapjax.records import Intake
from leapjax.testing import tiny_config
from tests.jobs.fakes import OPTIONS

LINES = [b'{"prompt_ids": [%d]}' % n for n in range(1, 8)]
LINES[2:2] = [b"", b"{broken", b"   "]  # blank lines are no records, broken ones are
RECORDS = [n for n, line in enumerate(LINES, 1) if line.strip()]
PACK = {"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.fixture(params=PACK)
def source(request, tmp_path):
    path = tmp_path / "in"
    path.write_bytes(PACK[request.param](b"\xef\xbb\xbf" + b"\n".join(LINES)))
    return Input(str(path))


@given(order=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=8))
def test_any_order(order):
    path = storage.filesystem("memory://index/in")[1]
    storage.filesystem("memory://")[0].pipe(path, b"\n".join(LINES))
    index = Index(Input("memory://index/in"), 3, None)
    assert index.records == 8 and [index.count(n) for n in range(len(index))] == [3, 3, 2]
    for shard, skip in order:
        found = [item.line for item in index.items(shard, skip)]
        assert found == RECORDS[3 * shard : 3 * shard + 3][skip:]


def test_packed_or_not(source):
    index = Index(source, 3, None)
    assert [i.line for n in (2, 0, 1, 1) for i in index.items(n)] == [
        RECORDS[n] for n in (6, 7, 0, 1, 2, 3, 4, 5, 3, 4, 5)
    ]
    assert index.info.lines == len(LINES) and index.info.bytes == len(b"\n".join(LINES)) + 3
    assert index.info == source.scan()
    few = Index(source, 3, 4)
    assert few.records == 4 and [i.line for i in few.items(1)] == RECORDS[3:4]
    assert few.info == index.info
    source.close()


@pytest.mark.parametrize("where", [0, 5, 9, "more"])
def test_a_change_is_noticed_in_its_shard(tmp_path, where):
    path = tmp_path / "in"
    path.write_bytes(b"\n".join(LINES))
    index = Index(Input(str(path)), 3, None)
    changed = [*LINES, b"{}"] if where == "more" else [*LINES]
    if where != "more":
        changed[where] = changed[where].replace(b"[", b"(")
    path.write_bytes(b"\n".join(changed))
    shard = {0: 0, 5: 1, 9: 2, "more": 2}[where]
    for n in range(len(index)):
        if n == shard:
            found = []
            with pytest.raises(UserError, match="in: changed while it was read"):
                found += index.items(n)
        else:
            assert len([*index.items(n)]) == index.count(n)


IDS = st.lists(st.sampled_from(["a", "b", 1, "1", None, True]), max_size=12)


@given(ids=IDS, bad=st.sets(st.integers(0, 11)), size=st.integers(1, 5))
def test_repeated_ids_are_those_that_one_process_meets_in_order(ids, bad, size):
    """The oracle takes the records one after the other, as a stream without shards does."""
    records = [{"id": i, "prompt_ids": [] if n in bad else [1]} for n, i in enumerate(ids)]
    data = "".join(f"{json.dumps(r)}\n" for r in records).encode()
    storage.filesystem("memory://")[0].pipe("/index/ids", data)
    index = Index(Input("memory://index/ids"), size, None)
    oracle = Intake(OPTIONS, tiny_config(), None)
    expected = set()
    for line, record in enumerate(records, 1):
        try:
            oracle.requests(record, line)
        except UserError as e:
            if "occurs twice" in str(e):
                expected.add(line)
    assert index.repeated(Intake(OPTIONS, tiny_config(), None, repeated=set())) == expected
