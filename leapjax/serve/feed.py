"""Read items from a source that may be slow, without blocking.

A producer may take minutes, or wait for an answer before it sends the next item. So a thread reads
sources other than lists, a bounded number of items ahead.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable, Sequence
from typing import Any

LATER = object()  # no item yet
END = object()  # no more items


class Feed:
    """One pass over a source. Use as a context manager.

    `source`: a list or tuple is read directly, anything else in a thread; `threaded`: False reads
    any source directly, which must then never wait for an answer.
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
        """Stop reading; a blocked producer is abandoned."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, room: int, wait: float = 0.0) -> Any:
        """The next item, `LATER`, or `END`.

        `room`: number of items that may be read ahead; `wait`: seconds to wait for an item. Raises
        Exception: the source's own, once the items before it are taken.
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
        except BaseException as e:  # `take` raises it again
            self._put("error", e)

    def _put(self, kind: str, value: Any) -> None:
        with self._changed:
            self._items.append((kind, value))
            self._changed.notify_all()
