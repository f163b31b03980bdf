"""One job a folder, and no lock outlives its holder."""

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from leapjax.errors import UserError
from leapjax.jobs import lease
from leapjax.jobs.lease import LeaseLost, leased
from leapjax.jobs.lock import locked
from leapjax.storage import Folder, LocalFolder


@pytest.fixture(params=["local", "remote"])
def place(request, tmp_path):
    if request.param == "local":
        yield LocalFolder(str(tmp_path))
    else:
        yield Folder("memory://locks")
        fsspec.filesystem("memory").store.clear()


def test_a_second_job_is_refused(place):
    with locked(place):
        with pytest.raises(UserError, match=f"another job .*process {os.getpid()} on "):
            with locked(place):
                pass
        assert place.read("lock")
    assert place.read("lock") is None
    with locked(place):
        pass


def test_a_lock_is_freed_by_an_exception(place):
    with pytest.raises(ValueError):
        with locked(place):
            raise ValueError
    with locked(place):
        pass


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "holder, free",
    [
        ({"pid": 1, "host": "elsewhere", "renewed": 0}, False),
        ({"pid": 1, "host": "elsewhere", "renewed": -lease.STALE - 1}, True),
        ({**lease.me(), "renewed": 0}, False),
        ({**lease.me(), "pid": "ended", "renewed": 0}, True),
        # Another container of the same name: this process id says nothing there.
        ({**lease.me(), "pid": "ended", "machine": "another", "renewed": 0}, False),
        ({"pid": "ended", "host": socket.gethostname(), "renewed": 0}, False),  # of 0.1
        ({"pid": 1, "host": "elsewhere"}, True),
        ("torn", True),
    ],
)
def test_leases_of_the_dead_do_not_count(holder, free):
    place = Folder("memory://leases")
    if isinstance(holder, dict):
        if "renewed" in holder:
            holder = {**holder, "renewed": time.time() + holder["renewed"]}
        if holder["pid"] == "ended":
            holder = {**holder, "pid": ended_process()}
    for name in place.sizes():
        place.remove(name)
    place.write("lock", json.dumps(holder).encode() if holder != "torn" else b'{"pid')
    if free:
        with locked(place):
            pass
        return
    with pytest.raises(UserError, match="another job"):
        with locked(place):
            pass


def test_a_lease_is_renewed(monkeypatch):
    monkeypatch.setattr(lease, "RENEW", 0.01)
    place = Folder("memory://renewed")
    with locked(place):
        first = json.loads(place.read("lock"))["renewed"]
        deadline = time.monotonic() + 10
        while json.loads(place.read("lock"))["renewed"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lock_file_that_its_holder_just_deleted_is_not_the_lock(monkeypatch, tmp_path):
    place, real, calls = LocalFolder(str(tmp_path)), fcntl.flock, []

    def flock(number, how):
        calls.append(number)
        if len(calls) == 1:  # between our open and our flock
            place.remove("lock")
        real(number, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(place):
        assert len(calls) == 2 and place.read("lock")
        with pytest.raises(UserError, match="another job"):
            with locked(place):
                pass


def test_without_flock_a_lease_serves(monkeypatch, tmp_path):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    place = LocalFolder(str(tmp_path))
    with locked(place):
        assert "renewed" in json.loads(place.read("lock.1"))  # beside what flock was tried on
        with pytest.raises(UserError, match="another job"):
            with locked(place):
                pass
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def lease_times(monkeypatch, stale, renew, look=0.0):
    for name, value in {"STALE": stale, "RENEW": renew, "LOOK": look}.items():
        monkeypatch.setattr(lease, name, value)
    yield


class Shop(LocalFolder):
    """A store with the semantics of GCS and S3: whole objects, conditional creation, no flock.

    Args:
      path: of a folder that stands for the bucket.
      seed: of the pauses between operations, by which contenders interleave.
    """

    def __init__(self, path, seed=0):
        super().__init__(path)
        self.random = random.Random(seed)

    def pause(self):
        time.sleep(self.random.choice([0, 0, 0.0005]))

    def sizes(self):
        self.pause()
        return {n: s for n, s in super().sizes().items() if not n.endswith(".new")}

    def read(self, name):
        self.pause()
        return super().read(name)

    def create_new(self, name, data):
        self.pause()
        return super().create_new(name, data)


def contend(path, seed, count=4):
    """Threads that want a lease at once; how many held it, and how many at the same time."""
    start, inside, most = threading.Barrier(count), [], []

    def one(number):
        start.wait(10)
        try:
            with leased(Shop(path, 97 * seed + number), "lock"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.003)
                inside.remove(number)
        except UserError:
            pass

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return most


def test_of_several_contenders_at_most_one_holds_a_lease(tmp_path):
    """The old lease wrote over what was there and read it back: in most rounds two held it."""
    held = 0
    for seed in range(25):
        place = tmp_path / str(seed)
        place.mkdir()
        if seed % 2:  # a dead holder's lease, which all may take over
            dead = {"pid": 1, "host": "elsewhere", "renewed": time.time() - lease.STALE - 1}
            (place / "lock").write_text(json.dumps(dead))
        most = contend(str(place), seed)
        assert max(most, default=0) <= 1
        held += len(most)
        assert not [p.name for p in place.iterdir() if not (seed % 2 and not most)]
    assert held >= 20  # all may step back, but seldom do


def test_a_contender_that_steps_back_takes_nothing_from_the_holder(tmp_path):
    """It saw a dead holder's file alone, creates the next but one, and looks once more."""
    folder = Shop(str(tmp_path), 0)
    holder, contender = lease.Lease(folder, "lock"), lease.Lease(folder, "lock")
    holder.take()
    look, looks = contender._refuse_if_held, []

    def refuse_if_held(numbers):
        looks.append(numbers)
        if len(looks) == 2:  # its file is there
            assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", "lock.1"]
            holder.renew()
            look(numbers)

    contender._refuse_if_held = refuse_if_held
    with pytest.raises(UserError, match="another job"):
        contender.take()
    holder.renew()
    holder.release()
    assert len(looks) == 2 and not list(tmp_path.iterdir())


def test_a_file_that_vanishes_during_a_look_hides_no_other(monkeypatch, tmp_path):
    """Another contender's temporary file: a look that then sees nothing would find no holder."""
    folder, real = LocalFolder(str(tmp_path)), os.scandir
    holder = lease.Lease(folder, "lock")
    holder.take()

    @contextlib.contextmanager
    def scandir(path):
        vanishing = tmp_path / "a.new"
        vanishing.touch()
        with real(path) as found:
            entries = list(found)
        vanishing.unlink()
        yield iter(entries)

    monkeypatch.setattr(os, "scandir", scandir)
    assert set(folder.sizes()) == {"lock"}
    with pytest.raises(UserError, match="another job"):
        lease.Lease(folder, "lock").take()
    holder.release()
    assert folder.read("lock") is None


def test_a_holder_that_ends_leaves_the_claims_of_others(tmp_path):
    """One saw an empty folder and creates the lowest number while a higher one is given back."""
    folder = Shop(str(tmp_path))
    holder, contender, third = (lease.Lease(folder, "lock") for _ in range(3))
    (tmp_path / "lock").write_text("torn")  # of a dead one, so that the holder has the next number
    holder.take()
    (tmp_path / "lock").unlink()
    (tmp_path / "lock.2").write_text("torn")  # of a contender that died before it stepped back
    look, looks = contender._refuse_if_held, []

    def refuse_if_held(numbers):
        looks.append(set(numbers))
        if len(looks) == 2:  # its file is there
            holder.release()
            with pytest.raises(UserError, match="another job"):
                third.take()
            numbers = files() - {0}
        look(numbers)

    contender._refuse_if_held, files = refuse_if_held, contender._files
    shown = [set()]  # its first look was before the holder's file was there
    contender._files = lambda: shown.pop() if shown else files()
    contender.take()
    contender.verify()
    contender.release()
    assert len(looks) == 2 and not list(tmp_path.iterdir())


def test_a_contender_suspended_before_it_says_held_overwrites_nobody(monkeypatch, tmp_path):
    folder, real = Shop(str(tmp_path)), time.time
    contender, holder = lease.Lease(folder, "lock"), lease.Lease(folder, "lock")
    look, looks = contender._refuse_if_held, []

    def refuse_if_held(numbers):
        looks.append(numbers)
        look(numbers)
        if len(looks) == 2:  # suspended here, for longer than its claim counts
            monkeypatch.setattr(time, "time", lambda: real() + lease.STALE + 1)
            folder.remove("lock")  # by a holder who came and went
            holder.take()

    contender._refuse_if_held = refuse_if_held
    with pytest.raises(LeaseLost):
        contender.take()
    holder.renew()
    holder.release()
    assert len(looks) == 2 and not list(tmp_path.iterdir())


def test_a_store_that_ignores_conditions_shows_the_first_that_it_has_lost(monkeypatch, tmp_path):
    """Where creating overwrites, the last one holds the lease, and the first notices."""

    class Careless(Shop):
        exclusive = False

        def create_new(self, name, data):
            self.write(name, data)
            return True

    place = Careless(str(tmp_path))
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    with lease_times(monkeypatch, 300.0, 30.0):
        with leased(place, "lock") as first:
            first.write("a", b"1")
            # Another looked before the first had written, and writes now.
            other = lease.Lease(place, "lock")
            place.write("lock", other._content())
            with pytest.raises(LeaseLost, match="no longer holds the lock"):
                first.write("a", b"2")
        assert place.read("a") == b"1"
        assert lease.parsed(place.read("lock"))["token"] == other._me["token"]  # left alone


WRITES = ("write", "create_new", "grow", "rename", "remove", "create")


@pytest.mark.parametrize("operation", [*WRITES, "sync", "add"])
def test_nothing_is_written_once_another_has_taken_over(monkeypatch, tmp_path, operation):
    place = Shop(str(tmp_path))
    with lease_times(monkeypatch, 300.0, 30.0):
        with leased(place, "lock") as first:
            file = first.grow("open")
            file.write(b"1")
            file.sync()
            # Its lease seems to have run out elsewhere, where the clock goes wrong.
            stale = {**json.loads(place.read("lock")), "renewed": 0}
            place.write("lock", json.dumps(stale).encode())
            with leased(place, "lock"):
                before = place.sizes()
                assert "lock.1" in before
                with pytest.raises(LeaseLost):
                    if operation in ("sync", "add"):
                        first.lease._renewed = (
                            (-1e9, -1e9) if operation == "add" else (first.lease._renewed)
                        )
                        file.write(b"2")
                        file.sync()
                    else:
                        arguments = {"create": (), "remove": ("open",), "grow": ("open",)}
                        getattr(first, operation)(*arguments.get(operation, ("open", b"2")))
                assert set(place.sizes()) == set(before)
        assert "lock" not in place.sizes()


def test_a_lease_that_ran_out_by_the_wall_clock_is_lost(monkeypatch, tmp_path):
    """A virtual machine that was suspended: its monotonic clock stood still."""
    place = Shop(str(tmp_path))
    real = time.time
    with leased(place, "lock") as folder:
        folder.write("a", b"1")
        monkeypatch.setattr(time, "time", lambda: real() + lease.STALE)
        with pytest.raises(LeaseLost):
            folder.write("a", b"2")
        with pytest.raises(LeaseLost):
            folder.lease.renew()
    monkeypatch.undo()
    assert place.read("a") == b"1" and place.read("lock")  # not even the lock was touched


SUSPENDED = """
import os, sys, time
from leapjax.jobs import lease
from leapjax.storage import LocalFolder
from leapjax.errors import UserError
lease.STALE, lease.RENEW, lease.LOOK = 0.6, 0.1, 0.0
try:
    with lease.leased(LocalFolder(sys.argv[1]), "lock") as folder:
        folder.write("journal", b"first")
        while not os.path.exists(sys.argv[2]):  # suspended here, not in the middle of a write
            time.sleep(0.001)
        folder.write("journal", b"too late")
except UserError as e:
    print(e)
    sys.exit(2)
"""


def test_a_suspended_process_writes_nothing_when_it_goes_on(monkeypatch, tmp_path):
    place, go = LocalFolder(str(tmp_path / "job")), tmp_path / "go"
    place.create()
    argv = [sys.executable, "-c", SUSPENDED, place.path, str(go)]
    first = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while place.read("journal") is None:
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        with lease_times(monkeypatch, 0.6, 0.1):
            while True:
                try:
                    with leased(place, "lock") as second:
                        second.write("journal", b"second")
                        go.touch()
                        first.send_signal(signal.SIGCONT)
                        said, _ = first.communicate(timeout=30)
                        assert second.read("journal") == b"second"
                        second.write("journal", b"third")
                    break
                except LeaseLost:
                    raise
                except UserError:  # its lease still counts
                    time.sleep(0.05)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 2 and said.count("\n") == 1 and "no longer holds" in said
    assert place.sizes().keys() == {"journal"} and place.read("journal") == b"third"
