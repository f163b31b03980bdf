"""A model without arithmetic and a disk that crashes, for tests of jobs."""

import dataclasses
import json
import random

import pytest

from leapjax import DecodeConfig
from leapjax.jobs import job
from leapjax.jobs.loop import Stopped
from leapjax.serve.engine import Progress
from leapjax.testing import tiny_config
from leapjax.types import Completion

OPTIONS = DecodeConfig(gen_length=4, block_length=4).for_model(tiny_config())
BAD = {3, 4, 12, 17, 23}  # of 23 records, 5 a shard: first, last, middle of a shard; the end


class FakeLM:
    """Answers depend on the request alone; requests are read ahead, as the engine does."""

    mesh = None

    def __init__(self, look_ahead=3):
        self.config = tiny_config()
        self.codec = None
        self.path = None
        self.dtype = "float32"
        self.model_hash = "0" * 64
        self.quantization = None
        self.look_ahead = look_ahead
        self.answered = []  # ids, over all streams
        self.batch_sizes = []
        self.progress = Progress(slots=2, running=1)

    def engine_for(self, count, batch_size=None, *, share_prefix="auto"):
        self.batch_sizes.append(batch_size)
        return self

    def stream(self, source, each_chunk, *, prepare, threaded):
        source = iter(source)
        waiting = []
        while True:
            while len(waiting) < self.look_ahead:
                if (item := next(source, None)) is None:
                    break
                waiting += prepare(item)
            if not waiting:
                return
            each_chunk(self.progress)
            request = waiting.pop(0)
            self.answered.append(request.id)
            yield self.answer(request)

    def answer(self, request):
        ids = [(sum(request.ids) + n + (request.sample or 0)) % 38 for n in range(4)]
        return Completion(
            id=request.id,
            text="",
            output_ids=ids,
            finish_reason="length",
            steps=len(request.ids),
            full_passes=1,
            nfe=1,
            commit_step=[0] * 4,
            commit_kind=["top1"] * 4,
            commit_confidence=[0.5] * 4,
            sample=request.sample,
            metadata=request.metadata,
        )


class Crash(BaseException):
    """The machine lost power."""


@dataclasses.dataclass
class _File:
    safe: bytes = b""  # survives a crash
    rest: bytes = b""  # may not

    @property
    def content(self):
        return self.safe + self.rest


class Disk:
    """A folder whose power fails at an operation of choice.

    Args:
      fail_at: number of the operation, from 0, that does not get through; None for never.
      error: what it raises; for `Crash` everything later fails too.
      seed: decides how much of what was not synced survives, and of the failing write.
    """

    path, exclusive = "disk", True

    def __init__(self, files=None, fail_at=None, error=Crash, seed=0):
        self.files = dict(files or {})
        self.operations = 0
        self.fail_at, self.error = fail_at, error
        self.random = random.Random(seed)

    def after_crash(self, **how):
        """The disk as the next process finds it: of what was not synced, some part."""
        kept = {}
        for name, file in self.files.items():
            kept[name] = _File(file.safe + file.rest[: self.random.randint(0, len(file.rest))])
            if name.startswith("process-"):  # the process has vanished
                content = json.loads(file.content) | {"pid": 10**8}
                kept[name] = _File(json.dumps(content).encode())
        return Disk(kept, **how)

    def contents(self):
        return {name: file.content for name, file in sorted(self.files.items())}

    def create(self):
        pass

    def sizes(self):
        return {name: len(file.content) for name, file in self.files.items()}

    def read(self, name):
        return self.files[name].content if name in self.files else None

    def read_many(self, names):
        return {name: self.read(name) for name in names}

    def write(self, name, data):
        self._operation()
        self.files[name] = _File(data)

    def create_new(self, name, data):
        self._operation()
        return self.files.setdefault(name, made := _File(data)) is made

    def grow(self, name, keep=0):
        old = self.read(name) or b""
        assert len(old) >= keep
        self.files[name] = _File(old[:keep])  # what is kept had been synced
        return _Growing(self, self.files[name])

    def rename(self, old, new):
        self._operation()
        self.files[new] = self.files.pop(old)

    def rename_new(self, old, new):
        self._operation()
        if old not in self.files:
            raise FileNotFoundError(old)
        self.files.setdefault(new, self.files[old])
        self.remove(old)

    def remove(self, name):
        self._operation()
        self.files.pop(name, None)

    def _operation(self, undone=lambda: None):
        number, self.operations = self.operations, self.operations + 1
        if self.fail_at is None:
            return
        if number == self.fail_at or (number > self.fail_at and self.error is Crash):
            undone()
            raise self.error


class _Growing:
    def __init__(self, disk, file):
        self.disk, self.file = disk, file

    def write(self, data):
        def part():
            self.file.rest += data[: self.disk.random.randint(0, len(data))]

        self.disk._operation(part)
        self.file.rest += data

    def sync(self):
        def part():
            cut = self.disk.random.randint(0, len(self.file.rest))
            self.file.safe += self.file.rest[:cut]
            self.file.rest = self.file.rest[cut:]

        self.disk._operation(part)
        self.file.safe, self.file.rest = self.file.content, b""

    def close(self):
        pass


def write_input(path, count, bad=(), **extra):
    """Records with ids, some of them bad; ids run backwards, so order tells nothing."""
    lines = []
    for n in range(1, count + 1):
        record = {"id": f"r{count - n:04d}", "prompt_ids": [n % 30 + 1] * (n % 5 + 1), **extra}
        lines.append("{broken" if n in bad else json.dumps(record))
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def outputs(contents):
    """What must come out the same, of a folder's contents: not the journal, and not the timings."""
    names = [n for n in contents if n.startswith("part-") or n == "errors.jsonl"]
    assert contents.keys() == {"journal", "summary.json", *names}
    summary = json.loads(contents["summary.json"])
    del summary["last_run"]
    return {n: contents[n] for n in names} | {"summary.json": summary}


def contents_of(folder):
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shards(folder):
    """The finished shards of a folder, by name."""
    return {name: data for name, data in contents_of(folder).items() if name.startswith("part-")}


def interrupted(spec, lm=None, looks=30, **changes):
    """A job that a signal stops after so many looks for one."""
    countdown = iter([None] * looks)
    with pytest.raises(Stopped):
        job.run(lm or FakeLM(), spec(**changes), stop=lambda: next(countdown, 15))
