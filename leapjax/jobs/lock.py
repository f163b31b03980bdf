"""One job a folder: a lock that dies with its holder.

On this machine the kernel holds it (`flock`), so a killed job leaves none. Elsewhere it
is a small file with the holder's name that is renewed while the job runs; one that has
not been renewed for `STALE` seconds, or whose process is gone from this host, does not
count.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs.shards import LOCK
from leapjax.jobs.storage import Folder, LocalFolder

STALE = 300.0
RENEW = 30.0


@contextlib.contextmanager
def locked(folder: Folder, name: str = LOCK) -> Iterator[None]:
    """Hold a folder's lock, or that of one process of a job.

    Args:
      folder: must exist.
      name: of the lock's file.

    Raises:
      UserError: another job holds it.
      OSError: the lock can't be written.
    """
    if isinstance(folder, LocalFolder):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_kernel_lock(folder, name))
            except OSError as e:
                if e.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
                    raise
                # A network filesystem without flock.
                stack.enter_context(_lease(folder, name))
            yield
    else:
        with _lease(folder, name):
            yield


def own_name(index: int) -> str:
    """The name of the lock of one process of a job."""
    return f"{LOCK}-{index:05d}"


def wait_for_others(folder: Folder, seconds: float = 60.0) -> None:
    """Wait until no process of an earlier run holds a lock of its own.

    When process 0 dies, the others follow within seconds; until then they may write.

    Args:
      folder: whose `LOCK` is held.
      seconds: how long.

    Raises:
      UserError: one still holds its lock.
      OSError: the folder can't be read or written.
    """
    deadline = time.monotonic() + seconds
    for name in sorted(folder.sizes()):
        while name.startswith(f"{LOCK}-"):
            try:
                with locked(folder, name):
                    break
            except UserError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.5)


@contextlib.contextmanager
def _kernel_lock(folder: LocalFolder, name: str) -> Iterator[None]:
    import fcntl

    path = os.path.join(folder.path, name)
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(number, 1 << 12, 0)
            os.close(number)
            raise _held(folder, _parsed(holder)) from None
        except OSError:
            os.close(number)
            raise
        # The holder before may have deleted the file between our open and flock.
        try:
            if os.stat(path).st_ino == os.fstat(number).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(number)
    try:
        with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
            os.ftruncate(number, 0)
            os.pwrite(number, json.dumps(_me()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(number)


@contextlib.contextmanager
def _lease(folder: Folder, name: str) -> Iterator[None]:
    me = _me()
    holder = _parsed(folder.read(name))
    if holder and not _is_gone(holder):
        raise _held(folder, holder)

    def renew() -> None:
        folder.write(name, json.dumps({**me, "renewed": time.time()}).encode())

    renew()
    if (_parsed(folder.read(name)) or {}).get("token") != me["token"]:
        raise _held(folder, _parsed(folder.read(name)))  # another was as quick
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(RENEW):
            with contextlib.suppress(OSError):  # tried again; a lease outlives several
                renew()

    thread = threading.Thread(target=keep, name="leapjax-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(OSError):
            folder.remove(name)


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "token": uuid.uuid4().hex}


def _parsed(data: bytes | None) -> dict[str, Any] | None:
    try:
        value = json.loads(data or b"null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_gone(holder: dict[str, Any]) -> bool:
    renewed = holder.get("renewed")
    if not isinstance(renewed, int | float) or time.time() - renewed > STALE:
        return True
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _held(folder: Folder, holder: dict[str, Any] | None) -> UserError:
    who = f" (process {holder['pid']} on {holder['host']})" if holder and "pid" in holder else ""
    return UserError(
        f"output {folder.path}: another job is writing there{who}; wait for it or stop it first"
    )
