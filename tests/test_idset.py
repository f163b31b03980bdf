"""The set of ids against Python's own."""

from hypothesis import given
from hypothesis import strategies as st

from leapjax.idset import IdSet


@given(st.lists(st.one_of(st.integers(), st.text())))
def test_like_a_set_of_strings(ids):
    ours, theirs = IdSet(), set()
    for given_id in ids:
        assert ours.add(given_id) == (str(given_id) not in theirs)
        theirs.add(str(given_id))
    assert len(ours) == len(theirs)


def test_many():
    ids = IdSet()
    assert all(ids.add(n) for n in range(20_000))
    assert not any(ids.add(str(n)) for n in range(20_000))
    assert len(ids) == 20_000
    assert ids.nbytes < 32 * 20_000
