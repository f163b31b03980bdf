"""The processes of a job: each says that it is alive, and sees which others are.

A process has a file `process-0123456789ab`, which it writes anew every `BEAT` seconds with a
number that grows (the beat), and removes when it ends in good order. Another process takes it for
dead if the file is missing, if its process has vanished from this machine, or if the observer has
seen the same beat for `STALE` seconds of its own clock. No clocks of two machines are compared, so
they may differ by any amount.

A wrong verdict costs work, never data: see `leapjax.jobs.claims`.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs.names import process_name, process_token
from leapjax.storage import Folder

STALE = 20.0  # seconds without a new beat after which a process counts as dead
BEAT = 4.0  # seconds between two beats


class Members:
    """The processes of a job, as one of them sees them."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._me = {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
        self.token = uuid.uuid4().hex[:12]  # names this process
        # What this process has done, as JSON; the others can read it.
        self.counts: Callable[[], dict[str, Any]] = dict
        self._beat = 0
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, float]] = {}  # token -> its last beat, and since when

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """A context in which this process is one of the job's."""
        self.beat()
        stop = self._keep_beating()
        try:
            yield
        finally:
            stop()
            with contextlib.suppress(OSError):
                self._folder.remove(process_name(self.token))

    def beat(self) -> None:
        """Say that this process is alive, and what it has done."""
        with self._lock:
            self._beat += 1
            content = {**self._me, "beat": self._beat, "counts": self.counts()}
            self._folder.write(process_name(self.token), json.dumps(content).encode())

    def is_alive(self, token: str) -> bool:
        """Whether a process is not known to be dead."""
        return token == self.token or self._look(token) is not None

    def others(self) -> dict[str, dict[str, Any]]:
        """Token -> content of the file, of the other processes that are not known to be dead."""
        tokens = {process_token(name) for name in self._folder.sizes()} - {None, self.token}
        found = {token: self._look(token) for token in sorted(filter(None, tokens))}
        return {token: content for token, content in found.items() if content is not None}

    def refuse_others(self, stop: Callable[[], Any] = lambda: None) -> None:
        """Raise `UserError` if another process is alive, which may take `STALE` seconds.

        `stop` is called while waiting, and may raise.
        """
        first: dict[str, int] = {}
        while found := self.others():
            for token, content in found.items():
                if first.setdefault(token, content["beat"]) != content["beat"]:
                    raise UserError(
                        f"output {self._folder.path}: another job is writing there (process "
                        f"{content.get('pid')} on {content.get('host')}); wait for it or stop it "
                        "first"
                    )
            stop()
            time.sleep(min(0.5, BEAT / 4))

    def _look(self, token: str) -> dict[str, Any] | None:
        """The content of a process's file; None if the process is dead."""
        now = time.monotonic()  # before the file is read: it may change while we are suspended
        content = _parsed(self._folder.read(process_name(token)))
        if content is None or _has_vanished(content):
            return None
        beat = content["beat"]
        if self._seen.get(token, (None,))[0] != beat:
            self._seen[token] = (beat, time.monotonic())
        return content if now - self._seen[token][1] <= STALE else None

    def _keep_beating(self) -> Callable[[], None]:
        """Beat in a thread; gives what ends it."""
        ended = threading.Event()

        def keep() -> None:
            pause = BEAT
            while not ended.wait(pause):
                try:
                    self.beat()
                    pause = BEAT
                except OSError:  # tried again soon; STALE outlives several
                    pause = BEAT / 4

        thread = threading.Thread(target=keep, name="leapjax-beat", daemon=True)
        thread.start()

        def stop() -> None:
            ended.set()
            thread.join()

        return stop


def _parsed(data: bytes | None) -> dict[str, Any] | None:
    try:
        value = json.loads(data or b"null")
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("beat"), int) else None


def _machine() -> str | None:
    """The scope of process ids: boot and pid namespace; None if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _has_vanished(content: dict[str, Any]) -> bool:
    """Whether a process of this machine has ended."""
    # Containers may share a host name, but not their process ids.
    if content.get("machine") is None or content["machine"] != _machine():
        return False
    try:
        os.kill(int(content["pid"]), 0)
    except ProcessLookupError:
        return True
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return False
    return False
