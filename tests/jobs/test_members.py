"""Who counts as alive."""

import errno
import json
import os
import subprocess
import sys
import time

import fsspec
import pytest

from leapjax.errors import UserError
from leapjax.jobs import members
from leapjax.jobs.claims import Claims, Files
from leapjax.jobs.members import Members
from leapjax.storage import Folder, LocalFolder


@pytest.fixture(params=["local", "remote"])
def place(request, tmp_path):
    if request.param == "local":
        yield LocalFolder(str(tmp_path))
    else:
        yield Folder("memory://members")
        fsspec.filesystem("memory").store.clear()


class Clock:
    """The module `time`; its clock moves when it is told to, or by sleep."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(members, "time", clock := Clock())
    return clock


def elsewhere(place):
    """A process on another machine."""
    other = Members(place)
    other._me["machine"] = "another"
    other.beat()
    return other


def test_a_process_is_alive_from_its_first_beat_to_its_end(place):
    one, two = Members(place), Members(place)
    assert not two.is_alive(one.token)
    with one.joined():
        assert two.is_alive(one.token) and [*two.others()] == [one.token]
        assert one.is_alive(one.token) and one.others() == {}
    assert not two.is_alive(one.token) and place.sizes() == {}


def test_it_beats_by_itself(place, monkeypatch):
    monkeypatch.setattr(members, "BEAT", 0.01)
    one, two = Members(place), Members(place)
    one.counts = lambda: {"answers": 7}
    with one.joined():
        deadline = time.monotonic() + 20
        while two.others()[one.token]["beat"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert two.others()[one.token]["counts"] == {"answers": 7}


def test_without_a_new_beat_it_counts_as_dead_in_the_end(place, clock):
    one, two = elsewhere(place), Members(place)
    assert two.is_alive(one.token)
    clock.now += members.STALE - 1
    assert two.is_alive(one.token)
    one.beat()
    clock.now += members.STALE - 1
    assert two.is_alive(one.token)  # the beat is new to it
    clock.now += members.STALE + 1
    assert not two.is_alive(one.token) and two.others() == {}
    assert Members(place).is_alive(one.token)  # a newcomer waits as long
    one.beat()
    assert two.is_alive(one.token)


def test_an_observer_that_is_suspended_while_it_looks_takes_nobody_for_dead(place, clock):
    one, two = elsewhere(place), Members(place)
    assert two.is_alive(one.token)
    read = two._folder.read

    def slow(name):
        data = read(name)
        clock.now += 10 * members.STALE  # the file changes meanwhile
        return data

    two._folder.read = slow
    assert two.is_alive(one.token)


def test_a_process_of_this_machine_that_has_vanished_is_dead_at_once(place):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    one, two = Members(place), Members(place)
    one._me["pid"] = child.pid
    one.beat()
    assert not two.is_alive(one.token)
    one._me["machine"] = "another container"  # where the number says nothing
    one.beat()
    assert two.is_alive(one.token)


def test_a_living_process_refuses_another_job(place, clock):
    one, two = elsewhere(place), Members(place)
    sleep = clock.sleep

    def beating(seconds):
        sleep(seconds)
        one.beat()

    clock.sleep = beating
    with pytest.raises(UserError, match=rf"another job .*process {os.getpid()} on .*stop it first"):
        two.refuse_others()
    clock.sleep = sleep
    two.refuse_others()  # it has died since
    assert clock.now > 1000 + members.STALE


def claims(place, job="a"):
    who = Members(place)
    who.beat()
    place.write("journal", json.dumps({"format": 4, "job": "a"}).encode() + b"\n")
    return Claims(place, who, job), who


def test_one_of_several_contenders_gets_a_shard(place):
    (one, _), (two, _) = claims(place), claims(place)
    nothing = Files({}, {})
    assert one.is_free(3, nothing) and two.is_free(3, nothing)
    taken = one.take(3, nothing)
    assert taken.turn == 0 and taken.is_held() and two.take(3, nothing) is None
    assert not two.is_free(3, two.look()) and two.look().turns == {3: [0]}


def test_a_shard_of_the_dead_is_taken_over(place):
    (one, dead), (two, _) = claims(place), claims(place)
    old = one.take(3, one.look())
    place.remove(members.process_name(dead.token))
    assert two.is_free(3, two.look())
    new = two.take(3, two.look())
    assert new.turn == 1 and new.is_held() and not old.is_held() and old.lost
    # With an old listing, a third one may create a turn that is gone.
    place.remove("claim-00003.0")
    place.remove("claim-00003.1")
    place.write("claim-00003.2", b'{"job": "a", "owner": "x"}')
    three, _ = claims(place)
    assert three.take(3, Files({}, {})) is None


def test_claims_of_another_job_do_not_count(place):
    other, _ = claims(place, job="older")
    with pytest.raises(UserError, match="another job has taken the folder over"):
        other.take(3, other.look())
    one, _ = claims(place)
    assert one.is_free(3, one.look()) and one.take(3, one.look()).turn == 1


def test_a_damaged_claim_is_named(place):
    one, _ = claims(place)
    place.write("claim-00003.0", b"{")
    with pytest.raises(UserError, match=r"claim-00003.0 line 1: is damaged; restore"):
        one.is_free(3, one.look())


def test_a_filesystem_without_hard_links(monkeypatch, tmp_path):
    """Where a process dies between the two halves of a creation, the claim is empty."""

    def none(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    place = LocalFolder(str(tmp_path))
    (one, _), (two, _) = claims(place), claims(place)
    assert one.take(0, one.look()).is_held() and not place.create_new("claim-00000.0", b"x")
    assert not two.is_free(0, two.look())
    place.write("claim-00001.0", b"")
    assert two.is_free(1, two.look()) and two.take(1, two.look()).turn == 1
    for name in ("a", "b"):
        place.write(name, name.encode())
        place.rename_new(name, "part")
    assert place.read("part") == b"a" and "b" not in place.sizes()


def test_a_store_without_conditional_creation_shows_who_was_last(monkeypatch, tmp_path):
    class Careless(LocalFolder):
        def __init__(self, path):
            super().__init__(path)
            self.exclusive = False

        def create_new(self, name, data):
            self.write(name, data)
            return True

    place = Careless(str(tmp_path))
    (one, _), (two, _) = claims(place), claims(place)
    nothing = Files({}, {})
    monkeypatch.setattr("leapjax.jobs.claims.SETTLE", 0.0)
    first = one.take(0, nothing)
    second = two.take(0, nothing)
    assert second.is_held() and not first.is_held()
