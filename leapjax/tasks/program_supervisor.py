"""Supervise one generated program: a script that program_execution.py starts, without leapjax.

    supervisor ──fork──▶ worker: an unprivileged user, limits, then the program
        │ ◀── "at the end" ──┘
        ├──── nonce ──▶ worker ── nonce, reversed ──▶ passed
        └ kills all that the program started

The nonce is made after the program's end, so while the program runs no process holds what
would prove it: leaving early, printing and searching the own process prove nothing. The
program still shares its interpreter with its tests and with the few lines around them: one
that is written against this file can deceive it.
"""

import contextlib
import ctypes
import os
import resource
import secrets
import signal
import socket
import sys
import time
import types
from pathlib import Path
from typing import NoReturn

# Exit statuses that nothing else gives.
PASSED, FAILED, TIMED_OUT, BROKEN = range(40, 44)
PROCESSES, FILES = 64, 256  # threads count as processes

_READY, _ENDED = b"r", b"e"
_LINUX = sys.platform == "linux"
# Of linux/prctl.h; the last is linux/capability.h's CAP_DAC_READ_SEARCH.
_DIE_WITH_PARENT, _DUMPABLE, _KEEP_CAPABILITIES, _SUBREAPER = 1, 4, 8, 36
_NO_NEW_PRIVILEGES, _AMBIENT, _READ_ALL = 38, 47, 2


def main(timeout_s: float, memory: int, output: int) -> int:
    """Run ./program.py within a wall time from when it begins; returns the exit status.

    `memory` limits the address space (not on macOS, which can't), `output` a file, both in bytes.
    """
    source = Path("program.py").read_text(encoding="utf-8")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))
    if _LINUX:
        _prctl(_SUBREAPER, 1)  # orphans come here, whatever session they made
        _prctl(_NO_NEW_PRIVILEGES, 1)  # no sudo
        _prctl(_DUMPABLE, 0)  # no /proc/PID/mem, no tracing by the same user
    channel, far = socket.socketpair()
    worker = os.fork()
    if not worker:
        _work(far.detach(), source, {"CPU": int(timeout_s) + 1, "AS": memory, "FSIZE": output})
    try:
        far.close()
        if channel.recv(1) != _READY:
            print((channel.recv(1000) or b"no word from it").decode(), file=sys.stderr)
            return BROKEN
        return _judge(channel, time.monotonic() + timeout_s)
    except OSError as e:  # too late, or it hung up
        return TIMED_OUT if isinstance(e, TimeoutError) else FAILED
    finally:
        _end_all(worker)


def _prctl(option: int, *values: int) -> None:
    ctypes.CDLL(None).prctl(option, *map(ctypes.c_ulong, (*values, 0, 0, 0, 0)[:4]))


def _judge(channel: socket.socket, deadline: float) -> int:
    def hear(count: int) -> bytes:
        heard = b""
        while len(heard) < count:
            channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            if not (more := channel.recv(count - len(heard))):
                break
            heard += more
        return heard

    if hear(1) != _ENDED:
        return FAILED
    nonce = secrets.token_bytes(16)
    channel.sendall(nonce)
    return PASSED if hear(16) == nonce[::-1] else FAILED


def _work(channel: int, source: str, limits: dict[str, int]) -> NoReturn:
    """What the forked process does; it never returns."""
    # Bound here, because the program may put others in their places.
    write, read, leave, getpid, me = os.write, os.read, os._exit, os.getpid, os.getpid()
    try:
        try:
            _confine(limits)
            os.dup2(1, 2)
            os.closerange(3, channel)
            os.closerange(channel + 1, FILES)
        except Exception as e:
            write(channel, b"!" + repr(e).encode())
            leave(1)
        write(channel, _READY)
        sys.argv = ["program.py"]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(source, "program.py", "exec"), module.__dict__)
        if getpid() == me:  # and no copy of it
            write(channel, _ENDED)
            write(channel, read(channel, 16)[::-1])
    finally:
        leave(0)


def _confine(limits: dict[str, int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)
    limits = {**limits, "NOFILE": FILES, "CORE": 0}
    if _LINUX:
        limits["NPROC"] = PROCESSES
        if not (os.geteuid() == 0 and _leave_root()):
            # All of the user's processes count, also those of three programs beside this one.
            limits["NPROC"] = _processes_of(os.getuid()) + 4 * PROCESSES
        _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if sys.platform == "darwin":
        del limits["AS"]
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _leave_root() -> bool:
    """Become a user that nobody else is; False where root may not, as in some containers."""
    # For root, a limit on processes means nothing.
    # Python and its packages may lie where only root can go; then that one power stays.
    paths = [Path(p).resolve() for p in (".", os.__file__, *sys.path) if os.path.exists(p)]
    above = {parent for path in paths for parent in path.parents}
    kept = 0 if all(p.stat().st_mode & 1 for p in above) else 1 << _READ_ALL
    _prctl(_KEEP_CAPABILITIES, 1)
    # High and free; in a container that maps few users, one of those that systemd leaves free.
    for user in (0x70000000 + os.getpid(), 61184 + os.getpid() % 4096):
        try:
            os.chown(".", user, user)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            break
        except OSError:
            continue
    else:
        return False
    header, powers = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(kept, kept, kept)
    if ctypes.CDLL(None).capset(header, powers):
        raise PermissionError("capset")
    if kept:  # also for the Pythons that it starts
        _prctl(_AMBIENT, 2, _READ_ALL)
    return True


def _processes_of(user: int) -> int:
    count = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # ended meanwhile
            text = status.read_text()
            if f"\nUid:\t{user}\t" in text:
                count += int(text.partition("\nThreads:")[2].split()[0])
    return count


def _end_all(worker: int) -> None:
    """Kill what is below; outside Linux, the worker's group: there orphans don't become ours."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in _below(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(1e-3)


def _below(root: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, new = set(), {root}
    while new := {pid for pid, parent in parents.items() if parent in new}:
        found |= new
    return found


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
