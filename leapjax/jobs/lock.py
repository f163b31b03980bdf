"""One job per folder: a lock that ends with its holder.

On this machine the kernel holds the lock (`flock`), so a killed job leaves none. Elsewhere the
lock is a lease (`leapjax.jobs.lease`), which its holder renews and may lose.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator

from leapjax.errors import UserError
from leapjax.jobs.lease import held, leased, me, parsed
from leapjax.jobs.names import LOCK
from leapjax.storage import Folder, LocalFolder


@contextlib.contextmanager
def locked(folder: Folder, name: str = LOCK) -> Iterator[Folder]:
    """Hold a lock on a folder.

    Args:
      folder: must exist.
      name: `LOCK` for a whole job, or the lock of one of its processes.

    Yields:
      The folder to write with; it refuses to write once the lock is lost.

    Raises:
      UserError: another job holds the lock, or this process was suspended for too long.
      OSError: the lock can't be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            if not isinstance(folder, LocalFolder):
                raise OSError(errno.ENOSYS, "no kernel holds locks there")
            stack.enter_context(_kernel_lock(folder, name))
        except OSError as e:
            if e.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
                raise
            # An object store, or a network filesystem without flock.
            folder = stack.enter_context(leased(folder, name))
        yield folder


def wait_for_others(folder: Folder, seconds: float = 60.0) -> None:
    """Wait until no process of an earlier run holds its own lock.

    When process 0 dies, the others follow within seconds; until then they may write.

    Args:
      folder: the folder whose `LOCK` is held, as it was given to `locked`.
      seconds: the longest wait.

    Raises:
      UserError: a process still holds its lock.
      OSError: the folder can't be read or written.
    """
    deadline = time.monotonic() + seconds
    for name in sorted({name.partition(".")[0] for name in folder.sizes()}):
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
            raise held(folder, parsed(holder)) from None
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
            os.pwrite(number, json.dumps(me()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(number)
