"""Folder jobs: whatever interrupts them, the outputs are those of an uninterrupted run."""

import contextlib
import dataclasses
import errno
import json
import random

import pytest

from leapjax import storage
from leapjax.errors import UserError
from leapjax.jobs import job, journal
from leapjax.jobs.claims import Claims, Files
from leapjax.jobs.loop import Stopped
from tests.jobs.fakes import BAD, OPTIONS, Crash, Disk, FakeLM, interrupted, outputs, shards


def test_an_uninterrupted_run(spec, tmp_path):
    result = job.run(FakeLM(), spec())
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "errors.jsonl",
        "journal",
        *(f"part-{n:05d}.jsonl" for n in range(5)),
        "summary.json",
    ]
    rows = [json.loads(line) for data in shards(out).values() for line in data.splitlines()]
    good = [n for n in range(1, 24) if n not in BAD]
    assert [(r["id"], r["sample"]) for r in rows] == [
        (f"r{23 - n:04d}", sample) for n in good for sample in (0, 1)
    ]
    assert rows[0]["metadata"] == {"note": "ü"} and rows[0]["commit_kind"] == ["top1"] * 4
    # Five records of the input a shard; lines 3 and 4 are bad, and so is 12.
    assert [len(d.splitlines()) for d in shards(out).values()] == [6, 10, 8, 8, 4]
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [e["line"] for e in errors] == sorted(BAD)
    assert list(errors[0]) == ["line", "id", "error"] and errors[0]["id"] is None
    assert "not valid JSON" in errors[0]["error"] and "in.jsonl" not in errors[0]["error"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.content))
    assert (summary["records"], summary["answers"], summary["errors"]) == (23, 36, 5)
    assert summary["tokens"] == sum(len(r["output_ids"]) for r in rows)
    assert summary["steps"] == sum(r["steps"] for r in rows)
    assert summary["options"] == OPTIONS.to_dict() and summary["weights"] == "0" * 64


def test_tokens_are_counted_up_to_a_stop_id(spec, tmp_path):
    result = job.run(FakeLM(), spec(options=OPTIONS.replace(stop_ids=[20])))
    rows = [
        json.loads(line) for data in shards(tmp_path / "out").values() for line in data.splitlines()
    ]
    ids = [row["output_ids"] for row in rows]
    tokens = sum(i.index(20) if 20 in i else len(i) for i in ids)
    assert result.content["tokens"] == result.summary.tokens == tokens < sum(map(len, ids))


@pytest.mark.parametrize("save_seconds", [0, 1e9], ids=["saves often", "never saves"])
def test_a_crash_at_every_operation(spec, on_disk, save_seconds):
    """Each write, sync, rename and removal in turn is the one that does not get through."""
    plain = spec(save_seconds=save_seconds)
    disk = on_disk(Disk())
    job.run(FakeLM(), plain)
    expected, operations = outputs(disk.contents()), disk.operations
    assert operations > 30
    for number in range(operations):
        disk = on_disk(Disk(fail_at=number, seed=number))
        with pytest.raises(Crash):
            job.run(FakeLM(), plain)
        disk = on_disk(disk.after_crash())
        lm = FakeLM()
        job.run(lm, spec(save_seconds=save_seconds, resume=True))
        assert outputs(disk.contents()) == expected, number
        assert not [name for name in disk.contents() if name.endswith(".open")]


def test_a_crash_while_an_older_job_is_overwritten(spec, on_disk):
    """Nothing of the older job, which another model began, is left in the new one."""

    class Other(FakeLM):
        def __init__(self):
            super().__init__()
            self.model_hash = "1" * 64

        def answer(self, request):
            return dataclasses.replace(super().answer(request), output_ids=[1, 2, 3, 4])

    plain = spec(save_seconds=0)
    disk = on_disk(Disk())
    job.run(Other(), plain)
    expected = outputs(disk.contents())
    older = on_disk(Disk())
    interrupted(spec, looks=40, save_seconds=0)
    for number in range(200):
        disk = on_disk(Disk(fail_at=number, seed=number))
        disk.files = {n: dataclasses.replace(f) for n, f in older.files.items()}
        with contextlib.suppress(Crash):
            job.run(Other(), dataclasses.replace(plain, overwrite=True))
        if number >= disk.operations:
            break
        disk = on_disk(disk.after_crash())
        try:
            job.run(Other(), dataclasses.replace(plain, resume=True))
        except UserError as refused:
            assert "weights changed" in str(refused)  # the older job is still there
            job.run(Other(), dataclasses.replace(plain, overwrite=True))
        assert outputs(disk.contents()) == expected, number
    assert 30 < number < 199


@pytest.mark.parametrize("seed", range(20))
def test_crash_after_crash(spec, on_disk, seed):
    disk = on_disk(Disk())
    job.run(FakeLM(), spec(save_seconds=0))
    expected = outputs(disk.contents())
    rng = random.Random(seed)
    disk = Disk(fail_at=rng.randint(0, 12), seed=seed)
    for _ in range(100):
        on_disk(disk)
        try:
            job.run(FakeLM(rng.randint(1, 9)), spec(save_seconds=0, resume=True))
            break
        except Crash:
            disk = disk.after_crash(fail_at=rng.randint(0, 12), seed=rng.random())
    assert outputs(disk.contents()) == expected


def test_a_full_disk_at_every_operation(spec, on_disk):
    """One line, nothing lost; with room again, the same command goes on."""
    disk = on_disk(Disk())
    job.run(FakeLM(), spec())
    expected, operations = outputs(disk.contents()), disk.operations
    for number in range(operations):
        full = OSError(errno.ENOSPC, "No space left on device")
        disk = on_disk(Disk(fail_at=number, error=full, seed=number))
        if number >= operations - 8:  # it has ended, and removes the claims and its own file
            job.run(FakeLM(), spec())
            assert disk.files["journal"].content.endswith(b'{"kind": "done"}\n')
            job.run(FakeLM(), spec(resume=True))
            assert outputs(disk.contents()) == expected, number
            continue
        with pytest.raises(UserError, match=r"(?s)^output .*\(No space left.*--resume") as told:
            job.run(FakeLM(), spec())
        assert "\n" not in str(told.value)
        on_disk(disk)
        disk.fail_at = None
        job.run(FakeLM(), spec(resume=True))
        assert outputs(disk.contents()) == expected, number


def test_stopped_anywhere_it_keeps_what_is_finished(spec, on_disk):
    disk = on_disk(Disk())
    job.run(FakeLM(), spec())
    expected = outputs(disk.contents())
    for looks in range(1, 60, 3):
        disk, lm = on_disk(Disk()), FakeLM()
        countdown = iter([None] * looks)
        with pytest.raises(Stopped) as stopped:
            job.run(lm, spec(), stop=lambda left=countdown: next(left, 15))
        assert stopped.value.number == 15
        again = FakeLM()
        job.run(again, spec(resume=True))
        assert outputs(disk.contents()) == expected
        # A record with an answer missing is done anew, no other.
        assert len(lm.answered) + len(again.answered) <= 36 + 1


def test_a_bad_record_ends_the_run_and_the_folder_can_be_resumed(spec, tmp_path):
    with pytest.raises(UserError, match=r"in.jsonl line 3: not valid JSON"):
        job.run(FakeLM(), spec(max_errors=0))
    with pytest.raises(UserError, match=r"line 12: .*\(bad record 3; --max-errors is 2\)"):
        job.run(FakeLM(), spec(max_errors=2, resume=True))
    with pytest.raises(UserError, match=r"line 17: .*\(bad record 4; --max-errors is 3\)"):
        job.run(FakeLM(), spec(max_errors=3, resume=True))
    # Records that were forgiven before count too.
    with pytest.raises(UserError, match=r"so far: 3, but --max-errors is 0; resume with at least"):
        job.run(FakeLM(), spec(resume=True, max_errors=0))
    job.run(FakeLM(), spec(max_errors=5, resume=True))
    lines = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == sorted(BAD)
    result = job.run(FakeLM(), spec(output=str(tmp_path / "straight")))
    assert shards(tmp_path / "out") == shards(tmp_path / "straight")
    assert result.content["errors"] == 5


def test_an_id_of_before_the_interruption_counts_as_a_duplicate(spec, tmp_path):
    lines = [json.dumps({"id": i, "prompt_ids": [1]}) for i in ["a", "b", "c", "d", "a", "e"]]
    lines[1] = '{"id": "e"}'  # bad, so its id is free
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    looks = iter([None] * 8)
    small = {"num_samples": None, "shard_size": 2}
    with pytest.raises(Stopped):
        job.run(FakeLM(1), spec(**small), stop=lambda: next(looks, 2))
    assert (tmp_path / "out" / "part-00000.jsonl").exists()
    assert not (tmp_path / "out" / "part-00001.jsonl").exists()
    job.run(FakeLM(), spec(resume=True, **small))
    errors = [json.loads(x) for x in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [(e["line"], e["id"]) for e in errors] == [(2, "e"), (5, "a")]


def test_records_of_some_keys_are_resumed_as_they_were_begun(spec, tmp_path):
    interrupted(spec, fields=("id", "text"), details=False)
    job.run(FakeLM(), spec(resume=True, fields=("id", "text"), details=False))
    records = [json.loads(x) for p in shards(tmp_path / "out").values() for x in p.splitlines()]
    assert len(records) == 2 * (23 - len(BAD)) and {tuple(r) for r in records} == {("id", "text")}


def test_slots_and_look_ahead_may_change_and_slots_are_remembered(spec, tmp_path):
    interrupted(spec, batch_size=4)
    lm = FakeLM(look_ahead=9)
    interrupted(spec, lm, looks=12, resume=True)
    assert lm.batch_sizes == [4]  # floats of another batch shape might differ
    lm = FakeLM(look_ahead=1)
    job.run(lm, spec(resume=True, batch_size=2))
    assert lm.batch_sizes == [2]
    job.run(FakeLM(), spec(output=str(tmp_path / "straight")))
    assert shards(tmp_path / "out") == shards(tmp_path / "straight")


def test_another_shard_size_changes_files_not_records(spec, tmp_path):
    interrupted(spec)
    job.run(FakeLM(), spec(resume=True, shard_size=7))
    job.run(FakeLM(), spec(output=str(tmp_path / "straight"), shard_size=100))
    assert b"".join(shards(tmp_path / "out").values()) == b"".join(
        shards(tmp_path / "straight").values()
    )
    assert len(shards(tmp_path / "straight")) == 1


def test_existing_output_is_refused_and_kept(spec, tmp_path):
    interrupted(spec)
    before = shards(tmp_path / "out")
    for check in (job.check, lambda s: job.run(FakeLM(), s)):
        with pytest.raises(UserError, match="is there already; add --resume"):
            check(spec())
        with pytest.raises(UserError, match="choose one"):
            check(spec(resume=True, overwrite=True))
    assert shards(tmp_path / "out") == before


def test_overwrite_leaves_nothing_of_the_old_job(spec, tmp_path):
    out = tmp_path / "out"
    interrupted(spec, looks=60)
    assert [*out.glob("shard-*.open")] and [*out.glob("claim-*")]
    (tmp_path / "in.jsonl").write_text("")
    job.run(FakeLM(), spec(overwrite=True))
    assert sorted(p.name for p in out.iterdir()) == ["journal", "summary.json"]
    # Nor does a job that is interrupted in turn keep a summary that is not its own.
    (tmp_path / "in.jsonl").write_text('{"prompt_ids": [1]}\n')
    interrupted(spec, looks=1, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["claim-00000.0", "journal"]
    job.run(FakeLM(), spec(resume=True))
    assert json.loads((out / "summary.json").read_text())["records"] == 1


@pytest.mark.parametrize("save_seconds, redone", [(0, 0), (1e9, 4)])
def test_a_crash_costs_what_was_not_saved(spec, on_disk, save_seconds, redone):
    class Killed(FakeLM):
        def answer(self, request):
            if len(self.answered) == 15:  # fourteen are through, ten in shards
                raise Crash
            return super().answer(request)

    same = {"max_errors": 5, "num_samples": None, "save_seconds": save_seconds, "details": False}
    with open(spec().input, "w") as file:
        file.writelines(f'{{"prompt_ids": [{n}]}}\n' for n in range(1, 21))
    disk, lm = on_disk(Disk()), FakeLM()
    with pytest.raises(Crash):
        job.run(Killed(), spec(**same))
    on_disk(disk.after_crash())
    job.run(lm, spec(resume=True, **same))
    assert len(lm.answered) == 20 - 14 + redone


def test_a_lost_shard_is_not_decoded_again(spec, tmp_path):
    interrupted(spec, looks=60)
    out = tmp_path / "out"
    last = sorted(shards(out))[-1]
    # As long as the lost shard, so that only its content tells.
    other = out / last.replace("part-", "shard-").replace("jsonl", "0.open")
    other.write_bytes(b"x" * (out / last).stat().st_size)
    (out / last).unlink()
    with pytest.raises(UserError, match=f"{last}: is missing"):
        job.run(FakeLM(), spec(resume=True))


def test_a_run_that_decodes_nothing_changes_nothing_that_counts(spec, tmp_path):
    def saved():
        files = Files.of(folder.sizes())
        return sorted(
            Claims(folder, None, journal.read(folder).job).entries(files), key=lambda e: e.shard
        )

    interrupted(spec, save_seconds=0)
    folder = storage.LocalFolder(str(tmp_path / "out"))
    settings, before = folder.read("journal"), saved()
    assert sum(entry.records for entry in before) > 5
    interrupted(spec, looks=0, resume=True)
    assert folder.read("journal") == settings and saved() == before


def test_a_finished_job_is_left_as_it_is(spec, tmp_path):
    job.run(FakeLM(), spec())
    before = (tmp_path / "out" / "summary.json").read_bytes()
    lm = FakeLM()
    result = job.run(lm, spec(resume=True))
    assert not lm.answered and result.content["records"] == 23
    assert (tmp_path / "out" / "summary.json").read_bytes() == before
    with pytest.raises(UserError, match="threshold was"):
        job.run(lm, spec(resume=True, options=OPTIONS.replace(threshold=0.8)))


def test_resume_without_a_job_begins_one(spec, tmp_path):
    job.run(FakeLM(), spec(resume=True))
    assert len(shards(tmp_path / "out")) == 5


def test_folders_of_others_are_left_alone(spec, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    job.check(spec())  # an empty folder is welcome
    (out / "thesis.tex").write_text("years of work")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="holds other files .thesis.tex"):
            job.run(FakeLM(), spec(**flags))
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_an_output_that_is_a_file(spec, tmp_path):
    (tmp_path / "out").write_text("")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="is a file"):
            job.check(spec(**flags))


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda out: (out / "part-00001.jsonl").unlink(), "part-00001.jsonl: is missing"),
        (lambda out: (out / "part-00000.jsonl").write_text("x"), "part-00000.jsonl: has 1 bytes"),
        (lambda out: next(out.glob("*.open")).write_text("x"), r"shard-0000\d.0.open: is not what"),
        (lambda out: (out / "journal").unlink(), "has shards but no journal"),
        (lambda out: (out / "journal").write_text("x\n"), "journal line 1: is damaged"),
    ],
)
def test_lost_files_are_told(spec, tmp_path, harm, message):
    interrupted(spec, looks=60)
    harm(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        job.run(FakeLM(), spec(resume=True))
    job.run(FakeLM(), spec(overwrite=True))


def test_limit(spec, tmp_path):
    interrupted(spec, limit=16)
    result = job.run(FakeLM(), spec(resume=True, limit=16))
    assert result.content["records"] == 16
    lines = b"".join(shards(tmp_path / "out").values()).splitlines()
    assert len(lines) == 2 * (16 - 3)


def test_no_records(spec, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n\n")
    result = job.run(FakeLM(), spec())
    assert result.content["records"] == 0 and result.content["tokens_per_step"] is None
    assert not shards(tmp_path / "out")


def test_a_missing_input_is_told_first(spec):
    with pytest.raises(UserError, match="^input nowhere.jsonl: no such file$"):
        job.check(spec(input="nowhere.jsonl"))
