"""The engine's schedule without a model: which passes a lane runs, and which rows they compute.

    queue -> slots -> a pass: waiting rows take turns, the others compute their window
      ^                 |
      +--- a chunk ends, free slots are refilled

A row waits at the start of a block: to refresh its cache, or to store the block before. This is
`Lane`, `run`, `caches.refresh` and `caches.block` in plain Python, for `leapjax plan`.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Sequence

from leapjax.decoding import Program
from leapjax.serve.engine import CHUNK
from leapjax.serve.sizes import refill_share


@dataclasses.dataclass
class Counts:
    """What a lane has computed."""

    chunks: int = 0  # calls from the host
    passes: int = 0  # iterations of the loop
    window_passes: int = 0  # those in which at least one row computed its window
    turns: int = 0  # of `refresh_group` rows
    turned_rows: int = 0  # rows that the turns computed
    waiting_rows: int = 0  # rows that waited for a turn
    steps: int = 0  # passes of each row that its policy decided in, summed over the rows
    stored: int = 0  # finished blocks that were stored


def simulate(rows: Iterable[Sequence[int]], slots: int, refresh_group: int = 1) -> Counts:
    """Decode rows in a lane with a `prefix` or `dual` cache, and count; see `simulate_for`.

    The order is that of `Engine.stream` on a list of at most 8 requests a slot, all of one program.

    Two rows with blocks of 3 and 2 passes. The first passes of their blocks refresh:

    `rows`: for each request the passes that each of its blocks takes, at least 1 each.

    >>> simulate([(3, 2), (3, 2)], slots=2)  # doctest: +NORMALIZE_WHITESPACE
    Counts(chunks=1, passes=5, window_passes=3, turns=4, turned_rows=4, waiting_rows=4, steps=10,
           stored=0)
    """
    return _simulate(rows, slots, refresh_group, first=True)


def simulate_for(program: Program, rows: Iterable[Sequence[int]], slots: int) -> Counts:
    """Decode rows in a lane with a program's cache, and count.

    `rows`: for each request the steps that each of its blocks takes, at least 1 each.
    """
    cache = program.kv_cache
    if cache.refreshes or not cache.stores:
        return simulate(rows, slots, program.refresh_group or slots)
    if not cache.folds(program):  # each block is stored in a pass of its own, the prompt's last too
        apart = program.model.seeds_blocks
        rows = [[steps + apart for steps in row] for row in rows]
        counts = _simulate(rows, slots, 0, first=False)
        counts.stored = apart * sum(map(len, rows))
        counts.steps -= counts.stored
        return counts
    rows = list(rows)
    group = 0 if cache.wide(program, slots) else max(program.refresh_group, 1)
    counts = _simulate(rows, slots, group, first=False)
    counts.stored = sum(len(row) - 1 for row in rows)
    return counts


def _simulate(rows: Iterable[Sequence[int]], slots: int, group: int, first: bool) -> Counts:
    """As `simulate`.

    `rows`: for each request the passes of its blocks; `group`: rows of a turn; 0 if no row waits
    for one; `first`: whether a row waits at the start of its first block, too.
    """
    group = min(group, slots)
    queue = deque(rows)
    # Passes of the blocks left, passes in the first of them, whether it is the row's first.
    seated: list[tuple[deque[int], int, bool]] = []
    counts = Counts()
    while queue or seated:
        while queue and len(seated) < slots:
            seated.append((deque(queue.popleft()), 0, True))
        share = refill_share(slots) if queue else slots
        most = max(len(seated) - share, 0)  # rows in flight at which the chunk ends
        end = counts.passes + CHUNK
        counts.chunks += 1
        while len(seated) > most and counts.passes < end:
            waits = [spent == 0 and (first or not new) for _, spent, new in seated]
            waiting = sum(waits) if group else 0
            turns = -(-waiting // group) if group else 0
            counts.passes += 1
            counts.window_passes += waiting < len(seated)
            counts.turns += turns
            counts.turned_rows += turns * group
            counts.waiting_rows += waiting
            counts.steps += len(seated)
            seated = [row for row in map(_advance, seated) if row[0]]
    return counts


def _advance(row: tuple[deque[int], int, bool]) -> tuple[deque[int], int, bool]:
    """The row after a pass: one more in its block, or at the start of the next block."""
    blocks, spent, new = row
    if spent + 1 < blocks[0]:
        return blocks, spent + 1, new
    blocks.popleft()
    return blocks, 0, False
