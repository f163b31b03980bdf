"""A lock where the kernel holds none: a file that its holder creates, renews and may lose.

    lock, lock.1, lock.2, …   the file with the highest number counts

A process takes the lease by creating a file that must not exist yet (`Folder.create_new`); the
store lets one of several contenders succeed. To take over from a dead holder, it creates the next
number, so nobody deletes or overwrites another's live lease. The new file is only a claim. Its
creator looks for other files once more, and steps back if one counts; otherwise it writes into
its own file that the lease is held.

A file counts while it was renewed within `STALE` seconds and its process has not vanished from
this machine. The holder trusts its lease for `RENEW` seconds less, by its own clocks, so a holder
that was suspended for longer has lost it. Before each write and at each renewal, the holder makes
sure that its file is still its own and the highest.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from leapjax.errors import UserError
from leapjax.storage import Folder, Growing

STALE = 300.0  # seconds after which a lease that was not renewed is anybody's
RENEW = 30.0  # seconds between renewals
LOOK = 1.0  # seconds for which a look at the store serves
SETTLE = 1.0  # seconds until a store without conditional creation shows who was last


class LeaseLost(UserError):
    """Another job may own the folder by now, so nothing may be written there."""


@contextlib.contextmanager
def leased(folder: Folder, name: str) -> Iterator[Folder]:
    """Hold a lease; see `leapjax.jobs.lock.locked`."""
    lease = Lease(folder, name)
    lease.take()
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(RENEW):
            try:
                lease.renew()
            except LeaseLost:
                return
            except OSError:  # tried again; a lease outlives several
                pass

    thread = threading.Thread(target=keep, name="leapjax-lock", daemon=True)
    thread.start()
    try:
        yield Guarded(folder, lease)
    finally:
        stop.set()
        thread.join()
        lease.release()


class Lease:
    """A lease on a folder. Any thread may call its methods.

    Args:
      folder: the folder that holds its file.
      name: name of the lock.
    """

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name = folder, name
        self._me = me()
        self._number = 0
        self._lost = False
        self._renewed = self._looked = _clocks()

    def take(self) -> None:
        """Take the lease.

        Raises:
          UserError: another job holds it.
          LeaseLost: the process was suspended until its claim ran out.
          OSError: the file can't be written.
        """
        seen = self._files()
        self._refuse_if_held(seen)
        # After the files seen: a process that took the lease since then has that number.
        self._number = max(seen, default=-1) + 1
        began = _clocks()
        self._folder.create_new(self._file, self._content(held=False))
        if not self._folder.exclusive:
            time.sleep(SETTLE)
        # Not what `create_new` said: a library may have tried again after a lost answer.
        if not self._is_ours():
            raise held(self._folder, parsed(self._folder.read(self._file)))
        try:
            self._refuse_if_held(self._files() - {self._number})
        except UserError:
            with contextlib.suppress(OSError):
                self._folder.remove(self._file)
            raise
        self._renewed = began
        self.renew()  # which says that it is held, unless the claim ran out in between

    def check(self) -> None:
        """Make sure, by the clocks alone, that the lease has not run out.

        Raises:
          LeaseLost: it has, or an earlier look found it lost.
        """
        if self._lost or _seconds_since(self._renewed) > STALE - RENEW:
            self._lost = True
            raise LeaseLost(
                f"output {self._folder.path}: this process no longer holds the lock (it was "
                f"suspended for longer than {STALE - RENEW:.0f} s, or another job took the folder "
                "over), so it writes nothing more; once no other job runs there, run the same "
                "command with --resume"
            )

    def verify(self) -> None:
        """Make sure, by a look at the store, that the lease is held.

        Raises:
          LeaseLost: it is not.
          OSError: the store can't be read.
        """
        self.check()
        if _seconds_since(self._looked) < LOOK:
            return
        began = _clocks()
        if not self._is_ours() or any(map(self._is_held, self._files())):
            self._lost = True
        self.check()
        self._looked = began

    def renew(self) -> None:
        """Make the lease last for another `STALE` seconds.

        Raises:
          LeaseLost: it is not held.
          OSError: the store can't be read or written.
        """
        began = _clocks()
        self._looked = (-LOOK, -LOOK)  # whatever was seen before
        self.verify()
        self._folder.write(self._file, self._content())
        if _seconds_since(began) > STALE - RENEW:  # suspended in between: too late
            self._lost = True
            if self._is_ours():
                self._folder.remove(self._file)
        self.check()
        self._renewed = began

    def release(self) -> None:
        """Give the lease back, if it is held."""
        with contextlib.suppress(LeaseLost, OSError):
            self._looked = (-LOOK, -LOOK)
            self.verify()
            for number in self._files():
                if number != self._number and not self._counts(number):  # of the dead
                    self._folder.remove(self._file_of(number))
            self._folder.remove(self._file)  # the last, as it counts until then

    @property
    def _file(self) -> str:
        return self._file_of(self._number)

    def _file_of(self, number: int) -> str:
        return f"{self._name}.{number}" if number else self._name

    def _files(self) -> set[int]:
        """Numbers of the lock's files."""
        file = re.compile(rf"{re.escape(self._name)}(?:\.(\d+))?")
        found = map(file.fullmatch, self._folder.sizes())
        return {int(match[1] or 0) for match in found if match}

    def _refuse_if_held(self, numbers: set[int]) -> None:
        """Raise if one of these files of others counts."""
        for number in numbers:
            if holder := self._counts(number):
                raise held(self._folder, holder)

    def _counts(self, number: int) -> dict[str, Any] | None:
        """Who holds or claims the lease with a file; None if the file doesn't count."""
        holder = parsed(self._folder.read(self._file_of(number)))
        return holder if holder and not _is_gone(holder) else None

    def _is_ours(self) -> bool:
        found = parsed(self._folder.read(self._file))
        return found is not None and found.get("token") == self._me["token"]

    def _is_held(self, number: int) -> bool:
        """Whether a file with a higher number than ours says that its lease is held."""
        if number <= self._number:
            return False
        found = parsed(self._folder.read(self._file_of(number)))
        return found is not None and found.get("held", True)

    def _content(self, held: bool = True) -> bytes:
        return json.dumps({**self._me, "held": held, "renewed": time.time()}).encode()


def _verified(name: str) -> Any:
    """A method of a folder that first makes sure that the lease is held."""

    def method(self: Guarded, *args: Any) -> Any:
        self.lease.verify()
        return getattr(self.folder, name)(*args)

    return method


class Guarded(Folder):
    """A folder that refuses to write once the lease on it is lost."""

    def __init__(self, folder: Folder, lease: Lease):
        self.folder, self.lease = folder, lease
        self.path, self.exclusive = folder.path, folder.exclusive
        self.sizes, self.read, self.check = folder.sizes, folder.read, lease.check

    create, write, create_new, rename, remove = map(
        _verified, ("create", "write", "create_new", "rename", "remove")
    )

    def grow(self, name: str, keep: int = 0) -> Growing:  # noqa: D102
        self.lease.verify()
        return _GuardedGrowing(self.folder.grow(name, keep), self.lease)


class _GuardedGrowing(Growing):
    def __init__(self, file: Growing, lease: Lease):
        self._growing, self._lease = file, lease
        self.close = file.close

    def write(self, data: bytes) -> None:  # noqa: D102
        self._lease.check()
        self._growing.write(data)

    def sync(self) -> None:  # noqa: D102
        self._lease.verify()
        self._growing.sync()


def _clocks() -> tuple[float, float]:
    # The first stands still while the machine sleeps, the second may be set: the longer counts.
    return time.monotonic(), time.time()


def _seconds_since(then: tuple[float, float]) -> float:
    return max(now - before for now, before in zip(_clocks(), then, strict=True))


def me() -> dict[str, Any]:
    """This process, as a lock file names it."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "token": uuid.uuid4().hex,
    }


def _machine() -> str | None:
    """The scope of process ids: boot and pid namespace; None if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def parsed(data: bytes | None) -> dict[str, Any] | None:
    """The holder that a lock file names, None if it names none."""
    try:
        value = json.loads(data or b"null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_gone(holder: dict[str, Any]) -> bool:
    renewed = holder.get("renewed")
    if not isinstance(renewed, int | float) or time.time() - renewed > STALE:
        return True
    # Containers may share a host name, but not their process ids.
    if None in (holder.get("machine"), _machine()) or holder["machine"] != _machine():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return False
    return False


def held(folder: Folder, holder: dict[str, Any] | None) -> UserError:
    """The error of a lock that another job holds."""
    who = f" (process {holder['pid']} on {holder['host']})" if holder and "pid" in holder else ""
    return UserError(
        f"output {folder.path}: another job is writing there{who}; wait for it or stop it first"
    )
