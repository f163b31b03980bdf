"""Who decodes which shard, and how far each is: files that processes claim shards with.

    claim-00007.0   the first claim on shard 7: its owner, and how far the shard is
    claim-00007.1   a later one; the highest turn counts

A process claims a shard by creating the file of the next turn, which must not exist yet; the store
lets one of several contenders succeed. A shard is free if nobody has claimed it, or if the owner
of its highest claim is dead (`leapjax.jobs.members`). Only its owner writes a claim, and only the
owner of turn 1 writes `shard-00007.1.open`, so no file has two writers, even if an owner that was
taken for dead goes on: before each save it looks for a higher turn and, if there is one, drops the
shard.

Of all entries of a shard, the furthest counts (`journal.furthest`). So a new owner goes on where
the one before saved last, whichever of them crashed, and wherever.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable
from typing import Any

from leapjax.errors import UserError
from leapjax.jobs import journal
from leapjax.jobs.journal import Entry, damaged, furthest
from leapjax.jobs.members import Members
from leapjax.jobs.names import claim_name, claim_number, open_name, part_name, part_number
from leapjax.jsonl import to_line
from leapjax.storage import Folder

SETTLE = 1.0  # seconds until a store without conditional creation shows who was last


@dataclasses.dataclass(frozen=True)
class Files:
    """What the names in a job's folder say."""

    parts: dict[int, int]  # complete shard -> bytes of its file
    turns: dict[int, list[int]]  # claimed shard -> the turns of its claims, in order

    @staticmethod
    def of(sizes: dict[str, int]) -> "Files":
        """Of the files' sizes by name.

        >>> Files.of({"part-00000.jsonl": 9, "claim-00001.1": 5, "claim-00001.0": 5, "journal": 7})
        Files(parts={0: 9}, turns={1: [0, 1]})
        """
        parts = {n: size for name, size in sizes.items() if (n := part_number(name)) is not None}
        turns: dict[int, list[int]] = {}
        for shard, turn in sorted(filter(None, map(claim_number, sizes))):
            turns.setdefault(shard, []).append(turn)
        return Files(parts, turns)


class Claims:
    """The claims of a job with the token `job` (`State.job`), for one of its processes.

    Methods raise `OSError` if the folder can't be read or written, and `UserError` if a claim is
    damaged.
    """

    def __init__(self, folder: Folder, members: Members, job: str):
        self._folder, self._members, self._job = folder, members, job
        self._owners: dict[tuple[int, int], str | None] = {}  # an owner never changes

    def look(self) -> Files:
        """What is in the folder now."""
        return Files.of(self._folder.sizes())

    def is_free(self, shard: int, files: Files) -> bool:
        """Whether a shard may be claimed: it is not complete, and no living process has it."""
        if shard in files.parts:
            return False
        if not (turns := files.turns.get(shard)):
            return True
        claim = shard, turns[-1]
        if claim not in self._owners:
            content = self._parsed(*claim, self._folder.read(claim_name(*claim)))
            if content is None:
                return False  # removed since the look, so somebody is at work there
            self._owners[claim] = content["owner"] if content["job"] == self._job else None
        owner = self._owners[claim]
        # A process says that it is alive before it claims anything, so this order can't mislead.
        return owner is None or not self._members.is_alive(owner)

    def take(self, shard: int, files: Files) -> "Claim | None":
        """Claim a shard that is free; None if another process was faster."""
        turn = max(files.turns.get(shard, ()), default=-1) + 1
        claim = Claim(self._folder, shard, turn, {"job": self._job, "owner": self._members.token})
        claim.create()
        if not claim.is_held():
            return None
        self.check_job()
        files = self.look()  # what has happened since the look before
        *earlier, highest = files.turns.get(shard, [-1])
        if shard in files.parts or highest != turn:
            return None
        claim.before = furthest(self._entries([(shard, t) for t in earlier]))
        return claim

    def check_job(self) -> bool:
        """Whether the job has ended; `UserError` if the folder holds another job, or none."""
        state = journal.read(self._folder)
        if state is None or state.job != self._job:
            raise UserError(
                f"output {self._folder.path}: another job has taken the folder over, so this "
                "process writes nothing more"
            )
        return state.done

    def entries(self, files: Files) -> list[Entry]:
        """The entry that counts of each shard of which anything is saved."""
        found: dict[int, list[Entry]] = {}
        for entry in self._entries([(s, t) for s, turns in files.turns.items() for t in turns]):
            found.setdefault(entry.shard, []).append(entry)
        return [self._that_counts(entries) for entries in found.values()]

    def _that_counts(self, entries: list[Entry]) -> Entry:
        best = furthest(entries)
        assert best is not None
        complete = [e for e in entries if e.complete]
        if len({e.sha256 for e in complete}) > 1:
            # A process that was taken for dead completed the shard, too, on other devices.
            data = self._folder.read(part_name(best.shard)) or b""
            digest = hashlib.sha256(data).hexdigest()
            return next((e for e in complete if e.sha256 == digest), best)
        return best

    def _entries(self, claims: Iterable[tuple[int, int]]) -> list[Entry]:
        """The entries of claims of this job that have one."""
        names = {claim_name(*claim): claim for claim in claims}
        found = []
        for name, data in self._folder.read_many(names).items():
            content = self._parsed(*names[name], data)
            if content is None or content["job"] != self._job or "kind" not in content:
                continue
            try:
                found.append(Entry.from_json(content))
            except (KeyError, TypeError, ValueError):
                raise damaged(f"{self._folder.path}/{name}") from None
        return found

    def _parsed(self, shard: int, turn: int, data: bytes | None) -> dict[str, Any] | None:
        if data == b"":  # where there are no hard links, its creator may have died
            return {"job": "", "owner": ""}
        try:
            content = json.loads(data or b"null")
            if content is None or {"job", "owner"} <= content.keys():
                return content
        except (ValueError, AttributeError):
            pass
        raise damaged(f"{self._folder.path}/{claim_name(shard, turn)}")


class Claim:
    """A shard that this process has claimed, after `turn` other claims on it.

    `who` says the job and the owner.
    """

    def __init__(self, folder: Folder, shard: int, turn: int, who: dict[str, str]):
        self._folder, self._who = folder, who
        self.shard, self.turn = shard, turn
        self.before: Entry | None = None  # the entry to go on from, None if nothing is saved
        self.lost = False  # another process has claimed the shard since
        self._name = claim_name(shard, turn)

    def create(self) -> None:
        """Create the claim's file, unless another process does."""
        self._folder.create_new(self._name, to_line(self._who).encode())
        if not self._folder.exclusive:
            time.sleep(SETTLE)

    def is_held(self) -> bool:
        """Whether the shard is still this process's, as the store says."""
        # Not what `create_new` said: a library may have tried again after a lost answer.
        own = self._folder.read(self._name) or b"null"
        higher = claim_name(self.shard, self.turn + 1)
        with contextlib.suppress(ValueError, AttributeError):
            is_own = self._who.items() <= json.loads(own).items()
            self.lost = self.lost or not is_own or self._folder.read(higher) is not None
            return not self.lost
        self.lost = True
        return False

    def save(self, entry: Entry) -> bool:
        """Record how far the shard is; False if it is not this process's any more."""
        if not self.is_held():
            return False
        self._folder.write(self._name, to_line(self._who | entry.to_json()).encode())
        return True

    def remove_earlier(self) -> None:
        """Remove the files of earlier claims, which say nothing that this one doesn't."""
        for turn in range(self.turn):
            self._folder.remove(claim_name(self.shard, turn))
            self._folder.remove(open_name(self.shard, turn))
