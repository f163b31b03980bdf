"""Ctrl-C and SIGTERM: how commands, jobs and training runs stop.

A job stops at the next good moment, and in any case soon (`Signals`). The first signal is only
noted. The job looks at it (`requested`) between two chunks, saves and ends. If the job is deep in a
compilation or a long chunk and does not look in time, a thread ends the process: the folder can be
resumed at any moment, so only the rows since the last save are lost. A second signal ends the
process at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Self

PATIENCE = 15.0  # seconds; VMs are taken away 25 to 30 seconds after the signal
QUICK = 0.3  # seconds; a command that stops sooner does not announce the signal
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], object], *numbers: int) -> Iterator[None]:
    """A context in which a handler takes signals; outside the main thread it changes nothing.

    `handler`: takes the signal's number and the interrupted frame; `numbers`: the signals; default:
    Ctrl-C and SIGTERM.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in numbers or _SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            if old is not None:  # None is a handler that Python can't name
                signal.signal(number, old)


def interrupt(number: int, frame: object) -> NoReturn:
    """A handler that ends a command as Ctrl-C does; the exception holds the signal's number."""
    raise KeyboardInterrupt(number)


class Flag:
    """A handler that asks once to stop; asked again, it interrupts at once."""

    def __init__(self):
        self.asked = False

    def __call__(self, number: int, frame: object) -> None:
        """Take a signal."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Listener:
    """A context in which signals are noticed at once, even while the main thread is in a library.

    Outside the main thread it does nothing. Signals without a Python handler are not noticed.

    `line`: printed on stderr at the first signal, unless the context is left within a moment.
    `ended`: set when the context is left; `answered`: set when no more has to be printed about a
    signal.
    """

    def __init__(self, line: str | None):
        self._line = line
        self.ended, self.answered = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            # Python's C handler writes a signal's number here; Python handlers wait for the main
            # thread.
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._thread = threading.Thread(
                target=self._listen, name="leapjax-signals", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        if not self._active:
            return
        self.ended.set()
        self.answered.set()
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._write, b"\0")  # wakes the thread
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def heard(self, number: int, count: int) -> None:
        """Handle a signal; called in a thread, with the number of signals so far."""
        if self._line and count == 1 and not self.answered.wait(QUICK):
            # Not through `sys.stderr`, whose lock the main thread may hold.
            os.write(2, f"{self._line}\n".encode())

    def _listen(self) -> None:
        count = 0
        while not self.ended.is_set():
            number = os.read(self._read, 1)[0]
            if number in _SIGNALS:
                count += 1
                self.heard(number, count)


class Signals(Listener):
    """A context in which signals are noted; outside the main thread it does nothing.

    `last_words`: called in a thread with the signal before the thread ends the process; `patience`:
    seconds between a signal and the end of a process that does not look; `prog`: name of the
    command in the line that announces a signal; None prints no line.
    """

    def __init__(
        self,
        last_words: Callable[[int], None] = lambda number: None,
        patience: float = PATIENCE,
        prog: str | None = None,
    ):
        super().__init__(f"{prog}: saving; again to stop now" if prog else None)
        self._last_words, self._patience = last_words, patience
        self._number: int | None = None

    def requested(self) -> int | None:
        """The signal that came, or None."""
        return self._number

    def __enter__(self) -> Self:
        self._handled = handled(self._note)
        self._handled.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._handled.__exit__(None, None, None)

    def _note(self, number: int, frame: object) -> None:
        self._number = self._number or number

    def heard(self, number: int, count: int) -> None:
        """Note the first signal; end the process at the second one, or after `patience`."""
        self._number = self._number or number
        if count > 1:
            self._end(self._number)
            return
        hurry = threading.Timer(self._patience, self._end, (number,))
        hurry.daemon = True  # `_end` does nothing once the context is left
        hurry.start()
        super().heard(number, count)

    def _end(self, number: int) -> None:
        if self.ended.is_set():
            return
        try:
            self._last_words(number)
        finally:
            os._exit(128 + number)
