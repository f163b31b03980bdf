"""Ctrl-C and SIGTERM: stop at the next good moment, and in any case soon.

The first signal is only noted; the job looks (`requested`) between two chunks, saves
and ends. Where the process is deep in a compilation or a long chunk and does not look
in time, a thread ends it: the folder can be resumed at any moment, so nothing is lost
but the rows since the last save. A second signal ends it at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

PATIENCE = 15.0  # seconds; VMs are taken away 25 to 30 seconds after the signal
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Notes signals while used as a context; in the main thread only, else it does nothing.

    Args:
      last_words: called from a thread with the signal before the process is ended.
      patience: seconds between a signal and the end of a process that did not look.
    """

    def __init__(
        self, last_words: Callable[[int], None] = lambda number: None, patience: float = PATIENCE
    ):
        self._last_words, self._patience = last_words, patience
        self._number: int | None = None
        self._ended = threading.Event()

    def requested(self) -> int | None:
        """The signal that came, or None."""
        return self._number

    def __enter__(self) -> Signals:
        self._active = threading.current_thread() is threading.main_thread()
        if not self._active:
            return self
        # The C part of a signal's delivery writes its number here, even while the main
        # thread is in a library and Python's own handlers have to wait.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._watch = threading.Thread(target=self._watcher, name="leapjax-signals", daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *error) -> None:
        if not self._active:
            return
        self._ended.set()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.write(self._write, b"\0")  # wakes the thread
        self._watch.join()
        os.close(self._read)
        os.close(self._write)

    def _note(self, number: int, frame: object) -> None:
        self._number = self._number or number

    def _watcher(self) -> None:
        first = self._wait_for_signal()
        if first is None:
            return
        self._number = self._number or first
        hurry = threading.Timer(self._patience, self._end, (first,))
        hurry.daemon = True
        hurry.start()
        second = self._wait_for_signal()
        hurry.cancel()
        if second is not None:
            self._end(first)

    def _wait_for_signal(self) -> int | None:
        while not self._ended.is_set():
            number = os.read(self._read, 1)[0]
            if number in _SIGNALS:
                return number
        return None

    def _end(self, number: int) -> None:
        if self._ended.is_set():
            return
        try:
            self._last_words(number)
        finally:
            os._exit(128 + number)
