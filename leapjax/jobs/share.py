"""Which records of the input a process decodes.

Of the incomplete shards, process P of N takes every N-th, starting with the P-th; with one
process that is all of them. Every process reads the whole input, so that it knows where shards
begin and which ids came before.
"""

from __future__ import annotations

import bisect
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator

from leapjax.errors import UserError
from leapjax.jobs.journal import State
from leapjax.jobs.loop import Stopped
from leapjax.jobs.peers import Peers
from leapjax.jobs.source import Item
from leapjax.jsonl import parse_line
from leapjax.records import Intake


class Share:
    """The records of the shards that are this process's own.

    Attributes:
      records: records of the input that were read so far.
      settled: the shard that was read last, if an earlier run saved all of its records so far.

    Args:
      state: how far the job is when the run begins.
      peers: the processes.
    """

    def __init__(self, state: State, peers: Peers):
        self.records = 0
        self.settled: int | None = None
        self._state, self._peers = state, peers
        self._complete = sorted(s for s, entry in state.entries.items() if entry.complete)

    def is_own(self, shard: int) -> bool:
        """Whether this process decodes a shard."""
        rank = shard - bisect.bisect_left(self._complete, shard)  # among the incomplete ones
        mine = rank % self._peers.count == self._peers.index
        return mine and not self._state.is_complete(shard)

    def total(self, records: int | None) -> int | None:
        """Records of this share, and those that earlier runs settled.

        Args:
          records: of the whole input, None if unknown.
        """
        if records is None:
            return None
        cut, total = self._state.cut, self._state.totals["records"]
        for shard in range(cut.shards, cut.count(records)):
            if self.is_own(shard):
                first = cut.records + (shard - cut.shards) * cut.size
                total += min(cut.size, records - first) - self._saved(shard)
        return total

    def items(
        self, items: Iterable[Item], intake: Intake, stop: Callable[[], int | None], name: str
    ) -> Iterator[Item]:
        """The records to decode, each with its shard; of the others, only ids are taken in.

        Args:
          items: all records of the input.
          intake: remembers ids.
          stop: a signal's number once the job shall stop, else None.
          name: of the input, for messages.

        Raises:
          UserError: the input is not that of the runs before.
          Stopped: the job was asked to stop.
        """
        state = self._state
        bad = {json.loads(row)["line"] for row in state.bad}
        chains = {entry.last_line: entry.chain for entry in state.entries.values()}
        another = UserError(
            f"input {name}: is not the one that the job was begun with; use that, or start anew "
            "with --overwrite"
        )
        shard, left = None, 0  # records of the shard that are saved and still to come
        for item in items:
            at, self.records = state.cut.shard_of(self.records), self.records + 1
            own = at is not None and self.is_own(at)
            if at != shard:
                shard, left = at, self._saved(at) if own else 0
            self.settled = shard if left else None
            if chains.pop(item.line, item.chain) != item.chain:
                raise another
            if own and not left:
                yield item._replace(shard=at)
                continue
            left -= own
            if item.line not in bad:
                # If the record is bad, the process that decodes it says so.
                with contextlib.suppress(UserError):
                    intake.remember(parse_line(item.given, item.where), item.line)
            if (signal := stop()) is not None:
                raise Stopped(signal)
        if chains:
            raise another

    def _saved(self, shard: int | None) -> int:
        """Records of a shard that an earlier run settled."""
        entry = None if shard is None else self._state.entries.get(shard)
        return entry.counts["records"] if entry else 0
