"""Items of a source that may be slow, without waiting for them.

A producer may think for minutes, or wait for the answer to what it sent before it sends more.
So sources other than lists are read in a thread, a bounded number of items ahead.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable, Sequence
from typing import Any

LATER = object()  # nothing has come yet
END = object()  # nothing will come


class Feed:
    """One pass over a source. Use as a context manager.

    Args:
      source: a list or tuple is read directly, anything else in a thread of its own.
      threaded: False reads any source directly: one that never waits for an answer.
    """

    def __init__(self, source: Iterable[Any], threaded: bool | None = None):
        if threaded is None:
            threaded = not isinstance(source, Sequence)
        self._source = iter(source)
        self._threaded = threaded
        self._items: collections.deque[Any] = collections.deque()
        self._changed = threading.Condition()
        self._room = 0  # items that may be read ahead
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Feed:
        """Nothing is read before the first `take`."""
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Read no more; a producer that is waited for is left behind."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, room: int, wait: float = 0.0) -> Any:
        """The next item, `LATER`, or `END`.

        Args:
          room: items that the caller can take from now on; no more are read ahead.
          wait: seconds to wait for an item.

        Raises:
          Exception: whatever the source raises, after the items before it.
        """
        if not self._threaded:
            return next(self._source, END)
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="leapjax-feed", daemon=True)
            self._thread.start()
        with self._changed:
            self._room = room
            self._changed.notify_all()
            if not self._items and wait:
                self._changed.wait_for(lambda: self._items, wait)
            if not self._items:
                return LATER
            kind, value = self._items[0]
            if kind == "item":
                self._items.popleft()
                return value
        if kind == "error":
            raise value
        return END

    def _read(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._items) < self._room)
                    if self._closed:
                        return
                self._put("item", next(self._source))
        except StopIteration:
            self._put("end", None)
        except BaseException as e:  # raised again where the items are taken
            self._put("error", e)

    def _put(self, kind: str, value: Any) -> None:
        with self._changed:
            self._items.append((kind, value))
            self._changed.notify_all()
