"""One job a folder, and no lock outlives its holder."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time

import fsspec
import pytest

from leapjax.errors import UserError
from leapjax.jobs import lock
from leapjax.jobs.lock import locked
from leapjax.jobs.storage import LocalFolder, RemoteFolder


@pytest.fixture(params=["local", "remote"])
def place(request, tmp_path):
    if request.param == "local":
        yield LocalFolder(str(tmp_path))
    else:
        yield RemoteFolder("memory://locks")
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
        ({"pid": 1, "host": "elsewhere", "renewed": -lock.STALE - 1}, True),
        ({"pid": os.getpid(), "host": socket.gethostname(), "renewed": 0}, False),
        ({"pid": "ended", "host": socket.gethostname(), "renewed": 0}, True),
        ({"pid": 1, "host": "elsewhere"}, True),
        ("torn", True),
    ],
)
def test_leases_of_the_dead_do_not_count(holder, free):
    place = RemoteFolder("memory://leases")
    if isinstance(holder, dict):
        if "renewed" in holder:
            holder = {**holder, "renewed": time.time() + holder["renewed"]}
        if holder["pid"] == "ended":
            holder = {**holder, "pid": ended_process()}
    place.write("lock", json.dumps(holder).encode() if holder != "torn" else b'{"pid')
    if free:
        with locked(place):
            pass
        return
    with pytest.raises(UserError, match="another job"):
        with locked(place):
            pass


def test_a_lease_is_renewed(monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.01)
    place = RemoteFolder("memory://renewed")
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
        assert len(calls) == 2 and place.size("lock")
        with pytest.raises(UserError, match="another job"):
            with locked(place):
                pass


def test_without_flock_a_lease_serves(monkeypatch, tmp_path):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    place = LocalFolder(str(tmp_path))
    with locked(place):
        assert "renewed" in json.loads(place.read("lock"))
        with pytest.raises(UserError, match="another job"):
            with locked(place):
                pass
    assert list(tmp_path.iterdir()) == []
