"""Where a folder job reads: standard input, packed files, remote paths."""

import gzip
import io
import sys
import types

import pytest

from leapjax import storage
from leapjax.errors import UserError
from leapjax.jobs import job, source
from tests.jobs.fakes import FakeLM, interrupted, shards


@pytest.mark.parametrize("change", [False, True], ids=["the same", "another"])
def test_stdin_is_recognised_by_what_is_behind(spec, monkeypatch, prompts, tmp_path, change):
    data = open(prompts, "rb").read()

    def stdin(data):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))

    stdin(data)
    interrupted(spec, input="-")
    stdin(data.replace(b"r0022", b"r0099") if change else data)
    if change:
        with pytest.raises(UserError, match="because the input changed"):
            job.run(FakeLM(), spec(input="-", resume=True))
        return
    job.run(FakeLM(), spec(input="-", resume=True))
    job.run(FakeLM(), spec(output=str(tmp_path / "straight")))
    assert shards(tmp_path / "out") == shards(tmp_path / "straight")


def test_gz(spec, prompts, tmp_path):
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(open(prompts, "rb").read()))
    interrupted(spec, input=str(packed))
    job.run(FakeLM(), spec(input=str(packed), resume=True))
    job.run(FakeLM(), spec(output=str(tmp_path / "straight")))
    assert shards(tmp_path / "out") == shards(tmp_path / "straight")
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(UserError, match="in.jsonl.gz: can't be read"):
        job.run(FakeLM(), spec(input=str(packed), overwrite=True))


def test_remote_paths(spec, prompts, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/jobs/in.jsonl", open(prompts, "rb").read())
    there = {"input": "memory://jobs/in.jsonl", "output": "memory://jobs/out"}
    interrupted(spec, save_seconds=0, **there)
    assert memory.glob("/jobs/out/shard-*.open") and not memory.exists("/jobs/out/lock")
    with pytest.raises(UserError, match="is there already"):
        job.check(spec(**there))
    job.run(FakeLM(), spec(resume=True, **there))
    job.run(FakeLM(), spec(output=str(tmp_path / "straight")))
    names = [n.rsplit("/", 1)[-1] for n in memory.ls("/jobs/out", detail=False)]
    assert sorted(names) == sorted(p.name for p in (tmp_path / "straight").iterdir())
    for name, data in shards(tmp_path / "straight").items():
        assert memory.cat(f"/jobs/out/{name}") == data
    memory.rm("/jobs", recursive=True)


def test_a_filesystem_nobody_knows(spec):
    for paths in ({"output": "nosuch://a/b"}, {"input": "nosuch://a/b"}):
        with pytest.raises(UserError, match="nosuch://a/b: can't be reached"):
            job.check(spec(**paths))


def test_an_input_that_a_remote_store_stops_giving(spec, monkeypatch):
    class Broken(io.RawIOBase):
        def read(self, size=-1):
            raise RuntimeError("token expired")

        readline = readinto = read

        def readable(self):
            return True

    monkeypatch.setattr("leapjax.jobs.source.open_read", lambda path: Broken())
    with pytest.raises(UserError, match=r"input gs://a/in: can't be read \(token expired\)"):
        job.run(FakeLM(), spec(input="gs://a/in"))
    with pytest.raises(UserError, match=r"input gs://a/in: can't be read \(token expired\)"):
        next(source.Input("gs://a/in").items())


def test_errors_of_a_remote_store_are_one_line(monkeypatch):
    monkeypatch.setattr(storage, "_PAUSES", (0.0, 0.0))
    calls = []

    class Broken(storage.Folder):
        def __init__(self):
            self.path, self._root = "gs://bucket/x", "bucket/x"
            self._system = types.SimpleNamespace(pipe_file=self.fail)

        def fail(self, *args):
            calls.append(args)
            raise RuntimeError("token\nexpired")

    with pytest.raises(OSError, match="gs://bucket/x: RuntimeError: token expired"):
        Broken().write("a", b"")
    assert len(calls) == 3  # it may pass
