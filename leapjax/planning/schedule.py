"""The engine's schedule without a model: which passes a lane runs, and which rows they compute.

    queue -> slots -> a pass: waiting rows refresh in turns, the others compute their window
      ^                 |
      +--- a chunk ends, free slots are refilled

This is `Lane`, `run` and `caches.refresh` in plain Python, for `leapjax plan`.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Sequence

from leapjax.serve.engine import CHUNK
from leapjax.serve.sizes import refill_share


@dataclasses.dataclass
class Counts:
    """What a lane has computed.

    Attributes:
      chunks: calls from the host.
      passes: iterations of the loop.
      window_passes: those in which at least one row computed its window.
      refresh_turns: turns of `refresh_group` rows.
      refreshed_rows: rows that the turns computed.
      refresh_rows_wanted: rows that waited for a refresh.
      steps: passes of each row, summed over the rows.
    """

    chunks: int = 0
    passes: int = 0
    window_passes: int = 0
    refresh_turns: int = 0
    refreshed_rows: int = 0
    refresh_rows_wanted: int = 0
    steps: int = 0


def simulate(rows: Iterable[Sequence[int]], slots: int, refresh_group: int = 1) -> Counts:
    """Decode rows in a lane with a `prefix` or `dual` cache, and count.

    The order is that of `Engine.stream` on a list of at most 8 requests a slot, all of one program.

    Args:
      rows: for each request the passes that each of its blocks takes, at least 1 each.
      slots: B.
      refresh_group: rows that a turn computes.

    Returns:
      The counts of the whole decode.

    Two rows with blocks of 3 and 2 passes. The first passes of their blocks refresh:

    >>> simulate([(3, 2), (3, 2)], slots=2)  # doctest: +NORMALIZE_WHITESPACE
    Counts(chunks=1, passes=5, window_passes=3, refresh_turns=4, refreshed_rows=4,
           refresh_rows_wanted=4, steps=10)
    """
    group = min(refresh_group, slots)
    queue = deque(rows)
    seated: list[tuple[deque[int], int]] = []  # passes of the blocks left, passes in the first one
    counts = Counts()
    while queue or seated:
        while queue and len(seated) < slots:
            seated.append((deque(queue.popleft()), 0))
        share = refill_share(slots) if queue else slots
        most = max(len(seated) - share, 0)  # rows in flight at which the chunk ends
        end = counts.passes + CHUNK
        counts.chunks += 1
        while len(seated) > most and counts.passes < end:
            waiting = sum(spent == 0 for _, spent in seated)
            turns = -(-waiting // group)
            counts.passes += 1
            counts.window_passes += waiting < len(seated)
            counts.refresh_turns += turns
            counts.refreshed_rows += turns * group
            counts.refresh_rows_wanted += waiting
            counts.steps += len(seated)
            seated = [row for row in map(_advance, seated) if row[0]]
    return counts


def _advance(row: tuple[deque[int], int]) -> tuple[deque[int], int]:
    """The row after a pass: one more in its block, or at the start of the next block."""
    blocks, spent = row
    if spent + 1 < blocks[0]:
        return blocks, spent + 1
    blocks.popleft()
    return blocks, 0
