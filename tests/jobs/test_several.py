"""Jobs of several processes: the outputs are those of one, whatever interrupts them.

Threads on a store in memory stand for the processes; `test_multihost.py` has real ones.
"""

import dataclasses
import itertools
import json
import os
import random
import sys
import threading

import pytest

from leapjax.errors import UserError
from leapjax.jobs import job, peers
from leapjax.jobs.lock import locked, wait_for_others
from leapjax.jobs.loop import Stopped
from leapjax.jobs.names import LOCK, of_process
from leapjax.jobs.peers import PeerEnded, Peers
from leapjax.storage import LocalFolder
from tests.jobs.fake_peers import Store, run_together
from tests.jobs.fakes import OPTIONS, Crash, Disk, FakeLM, contents_of, outputs, write_input


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(peers, "_PAUSE", 0.002)
    monkeypatch.setattr(peers, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(peers, "_LOOK", 0.0)
    monkeypatch.setattr(job, "VISIBLE", 0.6)


@pytest.fixture
def spec(spec):
    return lambda **changes: spec(**{"save_seconds": 0} | changes)


@pytest.fixture
def expected(spec, tmp_path):
    job.run(FakeLM(), spec(output=str(tmp_path / "straight")))
    return outputs(contents_of(tmp_path / "straight"))


def models(count):
    return [FakeLM(1 + n) for n in range(count)]


def answered(lms):
    return [i for lm in lms for i in lm.answered]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_outputs_are_those_of_one_process(spec, expected, tmp_path, count):
    lms = models(count)
    ends = run_together(lms, spec())
    assert outputs(contents_of(tmp_path / "out")) == expected
    assert len(answered(lms)) == 36  # two for each good record, none twice
    assert len({i for i in lms[0].answered} & {i for i in lms[1].answered}) == 0
    assert [bool(lm.answered) for lm in lms] == [n < 5 for n in range(count)]
    first = ends[0].content
    assert first["last_run"]["answers"] == 36 == ends[0].summary.answers
    assert first["last_run"]["processes"] == count
    assert sum(e.summary.answers for e in ends[1:]) + len(lms[0].answered) == 36
    again = models(2)
    ends = run_together(again, spec(resume=True))
    assert not answered(again) and not any(e.ran for e in ends)


@pytest.mark.parametrize("route", [(2, 1, 3), (1, 2), (1, 3, 1), (3, 2, 4), (1, 1, 2, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_resumed_with_another_number(spec, expected, tmp_path, route, seed):
    """Stopped now and then, each time another number of processes goes on."""
    rng = random.Random(seed)
    lms = []
    for number, count in enumerate(itertools.cycle(route)):
        assert number < 100
        new = models(count)
        lms += new
        looks = [iter([None] * rng.randint(10, 40)) for _ in new]
        stops = [lambda left=left: next(left, 15) for left in looks]
        if count == 1:
            try:
                job.run(new[0], spec(resume=True), stop=stops[0])
                break
            except Stopped:
                continue
        ends = run_together(new, spec(resume=True), stops)
        for end in ends:
            assert isinstance(end, (Stopped, PeerEnded, job.Result)), end
        if all(isinstance(end, job.Result) for end in ends):
            break
    assert outputs(contents_of(tmp_path / "out")) == expected
    assert len(set(answered(lms))) == 18


@pytest.mark.parametrize("before", [0, 1, 2], ids=["anew", "after one process", "after two"])
def test_a_crash_at_every_operation(spec, on_disk, expected, before):
    """Of the first process's folder, or of what all share; then one or two go on."""
    started = Disk()
    if before:
        on_disk(started)
        looks = iter([None] * 25)
        stops = [lambda: next(looks, 15), lambda: next(looks, 15)]
        if before == 1:
            with pytest.raises(Stopped):
                job.run(FakeLM(), spec(), stop=stops[0])
        else:
            run_together(models(2), spec(), stops)
        assert "journal" in started.files and "summary.json" not in started.files
    copied = started.contents()
    for number in range(200):
        disk = on_disk(Disk(started.files, fail_at=number, seed=number))
        disk.files = {n: dataclasses.replace(f) for n, f in started.files.items()}
        ends = run_together(models(2), spec(resume=True))
        if number >= disk.operations:
            break
        assert any(isinstance(end, Crash) for end in ends), ends
        disk = on_disk(disk.after_crash())
        if number % 2:
            job.run(FakeLM(), spec(resume=True))
        else:
            ends = run_together(models(3), spec(resume=True))
            assert all(isinstance(end, job.Result) for end in ends), ends
        assert outputs(disk.contents()) == expected, number
    assert number > 20 and started.contents() == copied


@pytest.mark.parametrize("seed", range(8))
def test_crash_after_crash_with_other_numbers(spec, on_disk, expected, seed):
    """Journals of several runs pile up, and the shard size changes where it may."""
    rng, size = random.Random(seed), 5
    disk = Disk(fail_at=rng.randint(0, 20), seed=seed)
    for _ in range(100):
        on_disk(disk)
        ends = run_together(models(rng.randint(1, 4)), spec(resume=True, shard_size=size))
        if all(isinstance(end, job.Result) for end in ends):
            break
        if "with shard_size" in str(ends[0]):
            size = None
            continue
        assert any(isinstance(end, Crash) for end in ends), ends
        disk = disk.after_crash(fail_at=rng.randint(0, 20), seed=rng.random())
        size = rng.choice([None, None, rng.randint(3, 7)])
    found = disk.contents()
    assert rows_of(found) == rows_of(expected)
    assert found["errors.jsonl"] == expected["errors.jsonl"]


def rows_of(contents):
    return b"".join(contents[n] for n in sorted(contents) if n.startswith("part-"))


def test_overwritten(spec, expected, tmp_path):
    looks = iter([None] * 30)
    run_together(models(3), spec(), [lambda: next(looks, 15)] * 3)
    out = tmp_path / "out"
    journals = [*out.glob("journal-*")]
    (out / "journal-00007").write_bytes(journals[0].read_bytes())
    job.run(FakeLM(), spec(overwrite=True))
    assert outputs(contents_of(out)) == expected
    ends = run_together(models(3), spec(overwrite=True))
    assert ends[0].ran and outputs(contents_of(out)) == expected


def test_ids_of_all_processes_count_as_duplicates(spec, tmp_path):
    ids = ["a", "b", "c", "d", "a", "e", "x", "f", "b", "g", "x", "h"]
    lines = [json.dumps({"id": i, "prompt_ids": [1]}) for i in ids]
    lines[6] = '{"id": "x"}'  # bad, so its id is free for line 11
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    plain = spec(num_samples=None, shard_size=2)
    job.run(FakeLM(), dataclasses.replace(plain, output=str(tmp_path / "one")))
    expected = outputs(contents_of(tmp_path / "one"))
    errors = [json.loads(x) for x in expected["errors.jsonl"].splitlines()]
    assert [(e["line"], e["id"]) for e in errors] == [(5, "a"), (7, "x"), (9, "b")]
    for count in (2, 3, 5):
        ends = run_together(models(count), dataclasses.replace(plain, overwrite=True))
        assert all(isinstance(end, job.Result) for end in ends), ends
        assert outputs(contents_of(tmp_path / "out")) == expected


def test_a_bad_record_too_many_ends_all_and_they_can_go_on(spec, expected, tmp_path):
    ends = run_together(models(2), spec(max_errors=0))
    assert any("not valid JSON" in str(end) for end in ends)
    assert all(isinstance(end, UserError) for end in ends)
    # No process has four, but together they do.
    ends = run_together(models(3), spec(max_errors=4, resume=True))
    assert "so far: 5, but --max-errors is 4" in str(ends[0]) + str(ends)
    assert not (tmp_path / "out" / "summary.json").exists()
    run_together(models(2), spec(max_errors=5, resume=True))
    assert outputs(contents_of(tmp_path / "out")) == expected


def test_who_does_not_belong_is_refused(spec, tmp_path):
    other = tmp_path / "other"
    ends = run_together(models(2), spec(), specs=[spec(), spec(output=str(other))])
    assert "name a folder that all hosts share" in str(ends[1])
    assert isinstance(ends[0], PeerEnded)
    changed = dataclasses.replace(OPTIONS, threshold=0.8)
    ends = run_together(
        models(2), None, specs=[spec(resume=True), spec(resume=True, options=changed)]
    )
    assert "can't join in, because threshold was 0.9, now 0.8 (before: process 0)" in str(ends[1])
    ends = run_together(models(2), spec())
    assert "is there already; add --resume" in str(ends[0])


def test_another_shard_size(spec, expected, tmp_path):
    """What is left is cut anew, unless a shard was begun out of turn."""
    looks = iter([None] * 25)
    with pytest.raises(Stopped):
        job.run(FakeLM(), spec(), stop=lambda: next(looks, 15))
    out = tmp_path / "out"
    assert (out / "shard-00001.open").exists()
    # Three records of shard 1 are saved, so it is complete by the new size.
    ends = run_together(models(2), spec(resume=True, shard_size=2))
    assert all(isinstance(end, job.Result) for end in ends), ends
    assert rows_of(contents_of(out)) == rows_of(expected)
    assert (out / "errors.jsonl").read_bytes() == expected["errors.jsonl"]

    ahead = threading.Event()

    class First(FakeLM):
        def answer(self, request):
            assert ahead.wait(60)
            return super().answer(request)

    class Second(FakeLM):
        def answer(self, request):
            if len(self.answered) == 3:  # a record of shard 1 is saved, none of shard 0
                ahead.set()
                raise UserError("enough")
            return super().answer(request)

    stop = [lambda: 15 if ahead.is_set() else None, lambda: None]
    run_together([First(), Second()], spec(overwrite=True), stop)
    for count in (1, 2):
        ends = run_together(models(count), spec(resume=True, shard_size=7))
        assert "with shard_size 5, now 7" in str(ends[0])
    with pytest.raises(UserError, match="stdin: several processes, or a job that several have"):
        job.run(FakeLM(), spec(resume=True, input="-"))
    run_together(models(2), spec(resume=True, shard_size=5))
    assert outputs(contents_of(out)) == expected


def test_shards_are_even_by_default(spec, tmp_path):
    path = write_input(tmp_path / "in.jsonl", 23)
    run_together(models(4), spec(input=path, shard_size=None, num_samples=None))
    sizes = [len(p.read_text().splitlines()) for p in sorted((tmp_path / "out").glob("part-*"))]
    assert sizes == [6, 6, 6, 5]
    assert [job.shard_size(n, 4) for n in (0, 1, 4000, 4001, 10**6)] == [1, 1, 1000, 501, 1000]


def test_a_stream_is_refused(spec):
    with pytest.raises(UserError, match="stdin: several processes"):
        job.check(spec(input="-"), Peers(Store(), 0, 2))


def test_a_lock_of_a_living_process_is_waited_for(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "wait_for_others", lambda folder: wait_for_others(folder, 0))
    looks = iter([None] * 10)
    with pytest.raises(Stopped):
        job.run(FakeLM(), spec(), stop=lambda: next(looks, 15))
    folder = LocalFolder(str(tmp_path / "out"))
    with locked(folder, of_process(LOCK, 3)):
        with pytest.raises(UserError, match="another job is writing there"):
            job.run(FakeLM(), spec(resume=True))
    job.run(FakeLM(), spec(resume=True))


@pytest.mark.parametrize(
    "flags, message",
    [
        (("h:1", None, None), "go together"),
        ((None, 2, 0), "go together"),
        ((None, None, 0), "go together"),
        (("h", 2, 0), "expected HOST:PORT"),
        (("h:1", 2, 2), "they are 0 to 1"),
    ],
)
def test_partial_flags(flags, message):
    with pytest.raises(UserError, match=message):
        peers.count_of(*flags)


@pytest.mark.parametrize(
    "environment, count",
    [
        ({}, 1),
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "node[1-2]",
                "SLURM_NTASKS": "8",
                "SLURM_PROCID": "3",
                "SLURM_LOCALID": "3",
            },
            8,
        ),
        (
            {
                "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            },
            4,
        ),
    ],
    ids=["alone", "Slurm", "Open MPI"],
)
def test_the_environment_says_how_many(monkeypatch, environment, count):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert peers.count_of(None, None, None) == count
    assert peers.count_of(None, 1, None) == 1
    assert peers.count_of("h:1", 3, 0) == 3


@pytest.mark.parametrize(
    "plugin, flags", [("xla_cuda13", "--a --xla_gpu_shard_autotuning=false"), ("libtpu", "--a")]
)
def test_gpus_autotune_alone(monkeypatch, tmp_path, plugin, flags):
    (tmp_path / "jax_plugins" / plugin).mkdir(parents=True)
    (tmp_path / "jax_plugins" / plugin / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jax_plugins", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--a")
    for _ in range(2):
        peers._compile_apart()
        assert os.environ["XLA_FLAGS"] == flags


def test_an_environment_that_tells_nothing_is_no_obstacle(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "x")
    said = []
    assert peers.count_of(None, None, None, said.append) == 1
    assert "ompi was found, but not its processes (KeyError" in said[0]
