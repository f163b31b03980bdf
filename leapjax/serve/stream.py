"""Answers to a source of requests: a thin layer over submit, step and cancel.

source ─▶ Feed ─▶ prepare ─▶ engine ─▶ mailbox ─▶ answers, in order or as they finish
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from leapjax.serve.feed import END, LATER, Feed
from leapjax.types import Completion, Request

if TYPE_CHECKING:
    from leapjax.serve.engine import Engine, Progress

_IDLE_WAIT = 0.2  # seconds to wait for an item while there is nothing to decode
_GATHER_WAIT = 0.02  # the same before the first chunk, so that first requests start together


def answers(
    engine: Engine,
    source: Iterable[Any],
    each_chunk: Callable[[Progress], None] | None,
    prepare: Callable[[Any], Sequence[Request]],
    *,
    threaded: bool | None,
    ordered: bool,
    ahead: int,
) -> Generator[tuple[int, Completion], None, None]:
    """Decode a source of requests; see `Engine.stream` and `Engine.as_completed`.

    `engine`: the engine; other streams may use it at the same time; `source`: the items; `ordered`:
    answer in the source's order; otherwise as rows finish; `ahead`: largest number of unanswered
    requests. Yields (number of the request from 0, Completion) pairs. Closing the generator cancels
    the rest.
    """
    mailbox: dict[int, Completion] = {}
    asked: dict[int, int] = {}  # unanswered requests: number by ticket, oldest first
    count, ended = 0, False
    with engine.streaming(), Feed(source, threaded) as feed:
        try:
            while True:
                while not ended and len(asked) < ahead:
                    wait = _IDLE_WAIT if not asked else 0 if engine.seated else _GATHER_WAIT
                    item = feed.take(ahead - len(asked), wait)
                    if item is LATER:
                        break
                    ended = item is END
                    for request in () if ended else prepare(item):
                        asked[engine.submit(request, mailbox)] = count
                        count += 1
                engine.begin(expecting=not ended)
                # While the devices work, the caller handles what is ready.
                for ticket in list(asked if ordered else mailbox):
                    if ticket not in mailbox:
                        break
                    yield asked.pop(ticket), mailbox.pop(ticket)
                if ended and not asked:
                    return
                if each_chunk is not None:
                    each_chunk(engine.progress)
                if len(mailbox) < len(asked):
                    engine.collect()
        finally:
            for ticket in asked:
                engine.cancel(ticket)
