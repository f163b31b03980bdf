"""What people who wait are shown on stderr: what is being done, and how far it is.

Library code says what takes long with `busy`; nothing is shown unless a command asks for it
(`announced`). Where stderr is no terminal, both are rare lines, never a bar.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from leapjax.wording import plural

EVERY = 60.0  # seconds between two lines where there is no terminal
PATIENCE = 10.0  # what is over by then isn't announced where there is no terminal

_announce: Callable[[str], contextlib.AbstractContextManager] | None = None
_bar: Any = None  # the console of the bar that is shown


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Says, while in the context, what the program is doing.

    `what`: such as `compiling for prompts up to 64 tokens`.
    """
    with contextlib.nullcontext() if _announce is None else _announce(what):
        yield


def note(line: str) -> None:
    """Says what a library function decided, where a command shows such things."""
    if _announce is not None:
        with contextlib.suppress(OSError):
            say(f"note: {line}", sys.stderr)


@contextlib.contextmanager
def announced(stream: TextIO | None = None, patience: float | None = None) -> Iterator[None]:
    """Shows what `busy` says while in the context: on a terminal at once, else if it takes long.

    `stream`: default stderr; `patience`: seconds without a terminal; None is `PATIENCE`.
    """
    global _announce

    @contextlib.contextmanager
    def announce(what: str) -> Iterator[None]:
        out = stream or sys.stderr
        if out.isatty():
            say(f"{what} …", out)
            yield
            return
        late = threading.Timer(PATIENCE if patience is None else patience, say, (f"{what} …", out))
        late.daemon = True
        late.start()
        try:
            yield
        finally:
            late.cancel()

    before, _announce = _announce, announce
    try:
        yield
    finally:
        _announce = before


def say(line: str, stream: TextIO | None = None) -> None:
    """A line above whatever bar is shown. `stream`: default stderr."""
    with contextlib.suppress(ValueError):  # closed meanwhile
        if _bar is not None:
            _bar.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=stream or sys.stderr, flush=True)


@contextlib.contextmanager
def bar(
    name: str,
    total: int | None,
    amount: Callable[[int], str],
    stream: TextIO | None = None,
    *,
    forecast: bool = True,
    keep: bool = True,
) -> Iterator[Callable[..., None]]:
    """A bar on a terminal.

    `name`: of what is done; `total`: how much there is to do, None if nobody knows; `amount`: how
    much is done, in words; `stream`: default stderr; `keep`: leave the bar on the terminal at the
    end. Yields `show(done, name=None, note="")`, which takes how much is done, another name, and
    words behind the bar.
    """
    global _bar
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Terminal(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False  # a process that a signal ends could not bring it back

    console = Terminal(file=stream or sys.stderr, force_terminal=True)
    columns = [
        TextColumn("{task.description}", markup=False),
        *([BarColumn(24)] if total is not None else []),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if forecast and total is not None else []),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    # Drawn when something was done, not by a thread.
    shown = Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=not keep,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task, last = shown.add_task(name, total=total, amount=amount(0), note=""), 0.0

    def show(done: int, name: str | None = None, note: str = "") -> None:
        nonlocal last
        shown.update(task, completed=done, description=name, amount=amount(done), note=note)
        if (now := time.monotonic()) - last > 0.1:
            last = now
            shown.refresh()

    before, _bar = _bar, console
    try:
        with shown:
            yield show
    finally:
        _bar = before


@contextlib.contextmanager
def counted(
    name: str, total: int, unit: str, stream: TextIO | None = None
) -> Iterator[Callable[..., None]]:
    """How much is done: a bar on a terminal, else a line every minute.

    `name`: of what is done; `total`: how many there are; of none nothing is shown; `unit`: what
    they are, in the singular; `stream`: default stderr. Yields `show(done, name=None)`, which takes
    how many are done, and another name.
    """
    out = stream or sys.stderr
    if total and out.isatty():
        with bar(name, total, lambda done: f"{done} of {plural(total, unit)}", out) as show:
            yield show
        return
    line = rarely()

    def tell(done: int, name: str | None = name) -> None:
        if total and line():
            print(f"{name}: {done} of {plural(total, unit)}", file=out, flush=True)

    yield tell


def rarely(every: float = EVERY) -> Callable[[], bool]:
    """Answers yes once in a while: the first time when so many seconds have passed.

    `every`: seconds.
    """
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        if time.monotonic() - last < every:
            return False
        last = time.monotonic()
        return True

    return due
