"""A job into a folder by several processes, each with shards of its own.

    process 0   looks at the folder, locks it, notes in the journal what is known
    all         read that, take the incomplete shards in turn, decode, write
    process 0   once all have finished: the bad records' file, the end, the summary

All read the whole input, so each knows where shards begin and which ids came before. A
shard's records and its file are the same whoever decodes it, so the outputs are those of
one process, and another run may have another number of them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs import journal as journals
from leapjax.jobs import spread_journal
from leapjax.jobs.header import SHARD_SIZE, describe, differences, noise_changed, without_noise
from leapjax.jobs.lock import locked, own_name, wait_for_others, watched
from leapjax.jobs.loop import Loop, Stopped
from leapjax.jobs.open_shard import kept
from leapjax.jobs.peers import Peers
from leapjax.jobs.source import Input, InputInfo, Item
from leapjax.jobs.spec import JobSpec, Result
from leapjax.jobs.spread_journal import Cut, State
from leapjax.jobs.spread_shards import SpreadShards
from leapjax.jobs.state import check_errors, ended, must_agree, to_resume
from leapjax.jobs.storage import Folder
from leapjax.jobs.summary import Summary, counts_of
from leapjax.jsonl import parse_line, to_line
from leapjax.records import Intake, to_record

VISIBLE = 60.0  # seconds until a network filesystem shows what another host wrote


def check(source: Input) -> None:
    """Refuse an input that several processes can't read.

    Raises:
      UserError: it is a stream.
    """
    if source.is_stream:
        raise UserError(
            f"input {source.name}: several processes, or a job that several have worked on, need "
            "a file that each can read; write it to one"
        )


def run(
    lm,
    spec: JobSpec,
    source: Input,
    folder: Folder,
    peers: Peers,
    *,
    show: Callable[[int | None], contextlib.AbstractContextManager],
    stop: Callable[[], int | None],
    note: Callable[[str], None] = lambda line: None,
) -> Result:
    """Decode this process's share, and in process 0 finish the job.

    Args:
      lm: the model.
      spec: the job.
      source: its input.
      folder: its output.
      peers: the processes.
      show: as for `leapjax.jobs.job.run`; process 0 shows its own share.
      stop: as there.
      note: as there; process 0's.

    Returns:
      Process 0: the counts of all processes. Others: their own, and no content.

    Raises:
      UserError, Stopped, OSError: as `leapjax.jobs.job.run`.
      PeerEnded: another process did not finish.
    """
    check(source)

    def look() -> None:
        if (number := stop()) is not None:
            raise Stopped(number)

    info = source.scan()
    header = describe(lm, spec, info)
    with contextlib.ExitStack() as stack:
        if peers.index == 0:
            to_resume(folder, spec)  # before the folder is touched
            folder.create()
            guarded = stack.enter_context(locked(folder))
            wait_for_others(folder)
            folder = guarded  # writes only while the lock is held
            state, data = _begin(spec, folder, peers, info, header, note)
            begun = json.dumps([hashlib.sha256(data).hexdigest(), header, state.done])
            peers.gather("begun", begun, look)
        else:
            begun, *_ = peers.gather("begun", "", look)
            state = _follow(spec, folder, begun, header)
        if state.done:
            if peers.index == 0:
                return ended(folder, state, None)
            return Result(Summary(), {}, False)
        if peers.index:
            folder = stack.enter_context(locked(folder, own_name(peers.index)))
        held = watched(folder, stop)

        def asked() -> int | None:
            peers.check()
            return held()

        peers.gather("locked", "", look)
        shards = SpreadShards(folder, state, peers.index, save_seconds=spec.save_seconds)
        with (
            kept(shards),
            show(_own_total(spec, info, state, peers) if peers.index == 0 else None) as seen,
        ):
            records, summary = _decode(lm, spec, source, info, state, peers, shards, seen, asked)
        own = [shards.written.hexdigest(), dataclasses.asdict(summary)]
        told = [json.loads(t) for t in peers.gather("finished", json.dumps(own), look)]
        result = Result(summary, {}, True)
        if peers.index == 0:
            state = _finished(folder, state, [written for written, _ in told])
            if state.shards != state.cut.count(records):
                raise UserError(
                    f"output {spec.output}: holds {state.shards} shards of "
                    f"{state.cut.count(records)}; run the same command with --resume"
                )
            check_errors(spec, state.errors)
            spread_journal.end(folder, state)
            result = ended(folder, state, _sum([s for _, s in told]), peers.count)
        peers.gather("ended", "", look)
        return result


def turns(peers: Peers) -> Iterator[bool]:
    """Whose shard is whose: incomplete ones go round.

    Args:
      peers: the processes.

    Yields:
      For each incomplete shard in order, whether it is this process's.
    """
    return (number % peers.count == peers.index for number in itertools.count())


def _begin(
    spec: JobSpec,
    folder: Folder,
    peers: Peers,
    info: InputInfo,
    header: dict[str, Any],
    note: Callable[[str], None],
) -> tuple[State, bytes]:
    """Process 0, which holds the lock: note what is known of the job."""
    found = to_resume(folder, spec)
    if found is None:
        size = spec.shard_size or _even(spec.records(info) or 0, peers.count)
        header["shard_size"] = size
        state = State(header, Cut(0, 0, size))
        spread_journal.forget(folder)
        return state, spread_journal.begin(folder, state)
    must_agree(spec, found, header, note)
    if isinstance(found, State):
        state = found
        if spec.shard_size not in (None, state.cut.size):
            raise UserError(
                f"output {spec.output}: several processes have worked on it with shard_size "
                f"{state.cut.size}, now {spec.shard_size}; use what it was begun with, or start "
                "anew with --overwrite"
            )
    else:
        values, _ = journals.read_values(folder) or ([found.header], 0)
        if found.done:
            state = State(found.header, Cut(0, 0, 1), done=True)
            return state, b""
        size = spec.shard_size or found.header["shard_size"]
        state = spread_journal.from_single(folder, values, size)
    if state.done:
        spread_journal.forget(folder)  # a crash may have come before that
        return state, b""
    return state, spread_journal.begin(folder, state)


def _follow(spec: JobSpec, folder: Folder, begun: str, header: dict[str, Any]) -> State:
    """The others: take up what process 0 noted."""
    digest, of_first, done = json.loads(begun)
    if changes := differences(of_first, header):
        raise UserError(
            f"this process can't join in, because {' and '.join(changes)} (before: process 0); "
            "give all the same"
        )
    if done:
        return State(of_first, Cut(0, 0, 1), done=True)
    data = _visible(folder, journals.NAME, digest)
    return spread_journal.from_bytes(data, f"{folder.path}/{journals.NAME}")


def _visible(folder: Folder, name: str, digest: str) -> bytes:
    """A file that another process has written, maybe on another host.

    Raises:
      UserError: it doesn't appear here.
    """
    deadline = time.monotonic() + VISIBLE
    while True:
        data = folder.read(name)
        if data is not None and hashlib.sha256(data).hexdigest() == digest:
            return data
        if time.monotonic() >= deadline:
            raise UserError(
                f"output {folder.path}: what another process wrote to {name} is not to be seen; "
                "name a folder that all hosts share"
            )
        time.sleep(0.5)


def _even(records: int, count: int) -> int:
    """A shard size near the usual one that gives each process the same number of shards."""
    each = -(-records // (SHARD_SIZE * count)) or 1
    return -(-records // (each * count)) or 1


def _own_total(spec: JobSpec, info: InputInfo, state: State, peers: Peers) -> int | None:
    """Records of this process's share, as far as one can tell."""
    records = spec.records(info)
    if records is None:
        return None
    cut, mine, total = state.cut, turns(peers), 0
    for shard in range(cut.shards, cut.count(records)):
        if not state.is_complete(shard) and next(mine):
            first = cut.records + (shard - cut.shards) * cut.size
            total += min(cut.size, records - first) - _saved(state, shard)
    return total


def _saved(state: State, shard: int) -> int:
    """Records of a shard that an earlier run settled."""
    part = state.parts.get(shard)
    return part.entry.counts["records"] if part else 0


class _Share:
    """The items of the shards that are this process's turn; of others only ids are noted.

    Attributes:
      records: of the input so far.
      shards: of the items that were given and not yet settled.
      settled: a last shard of which every record is settled, but that isn't complete.
    """

    def __init__(self, state: State, peers: Peers, intake: Intake, stop, name: str):
        self.records = 0
        self.shards: collections.deque[int] = collections.deque()
        self.settled: int | None = None
        self._state, self._intake, self._stop, self._name = state, intake, stop, name
        self._turns = turns(peers)
        self._bad = state.bad_lines()
        self._chains = {p.entry.last_line: p.entry.chain for p in state.parts.values()}

    def items(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those of `items` that are to be decoded here."""
        shard, mine, position, saved = None, False, 0, 0
        for item in items:
            number, self.records = self.records, self.records + 1
            now = self._state.cut.shard_of(number)
            if now != shard:
                shard, position, mine, saved = now, 0, False, 0
                if shard is not None and not self._state.is_complete(shard):
                    mine, saved = next(self._turns), _saved(self._state, shard)
                self.settled = shard if mine and saved else None
            position += 1
            if self._chains.pop(item.line, item.chain) != item.chain:
                raise self._another()
            if mine and position > saved:
                assert shard is not None
                self.shards.append(shard)
                self.settled = None
                yield item
                continue
            if item.line not in self._bad:
                # Another process says what is wrong with it, if anything is.
                with contextlib.suppress(UserError):
                    self._intake.remember(parse_line(item.given, item.where), item.line)
            if (signal := self._stop()) is not None:
                raise Stopped(signal)
        if self._chains:
            raise self._another()

    def _another(self) -> UserError:
        return UserError(
            f"input {self._name}: is not the one that the job was begun with; use that, or start "
            "anew with --overwrite"
        )


class _Sink:
    """Completions into the shards."""

    def __init__(self, shards: SpreadShards, share: _Share, eos_id: int, spec: JobSpec):
        self._shards, self._share = shards, share
        self._eos_id, self._spec = eos_id, spec

    def write(self, completion) -> None:
        row = to_line(to_record(completion, self._spec.details, self._spec.fields)).encode()
        self._shards.write(row, counts_of(completion, self._eos_id))

    def keep_bad(self, record: dict[str, Any]) -> None:
        self._shards.keep_bad(to_line(record).encode())

    def settle(self, item: Item) -> None:
        self._shards.settle(self._share.shards.popleft(), item.line, item.chain)


def _decode(
    lm, spec: JobSpec, source: Input, info, state: State, peers: Peers, shards, seen, stop
) -> tuple[int, Summary]:
    """Records of the input, and the counts of this process."""
    intake = Intake(
        spec.options,
        lm.config,
        lm.codec,
        raw=spec.raw,
        stop=spec.stop,
        samples=spec.num_samples,
        earlier=lambda: ((i.line, i.given) for i in Input(spec.input).items()),
    )
    share = _Share(state, peers, intake, stop, source.name)
    loop = Loop(
        lm,
        intake,
        _Sink(shards, share, lm.config.eos_token_id, spec),
        max_errors=spec.max_errors,
        errors=state.errors,
        batch_size=spec.batch_size or state.header["batch_size"],
        seen=seen,
        stop=stop,
    )
    items = share.items(itertools.islice(source.items(), spec.limit))
    if noise_changed(state.header):
        items = without_noise(items, state.header)
    summary = loop.run(items)
    if spec.limit is None:
        source.check_unchanged(info)
    shards.finish(share.settled)
    return share.records, summary


def _finished(folder: Folder, state: State, digests: list[str]) -> State:
    """The state after all processes have finished, from their journals.

    Raises:
      UserError: a journal or a shard doesn't appear here.
    """
    for index, digest in enumerate(digests):
        name = spread_journal.own_name(index)
        data = _visible(folder, name, digest)
        where = f"{folder.path}/{name}"
        state.take(journals.parse(data, where, header=False)[0], where, 1)
    deadline = time.monotonic() + VISIBLE
    while True:
        try:
            spread_journal.check_parts(folder, state)
            return state
        except UserError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.5)


def _sum(summaries: list[dict[str, Any]]) -> Summary:
    """The counts of all processes; they ran at the same time."""
    total = Summary()
    for counts in summaries:
        for name in ("answers", "tokens", "steps", "committed"):
            setattr(total, name, getattr(total, name) + counts[name])
        total.seconds = max(total.seconds, counts["seconds"])
    return total
