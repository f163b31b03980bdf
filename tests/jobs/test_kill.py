"""Real processes, killed for real; then the outputs must be those of one that was not."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "golden" / "llada-a"
SLOW_DISK = Path(__file__).with_name("slow_disk.py")
RECORDS = 90
BAD = (31, 60)  # the first of a shard and the last of one


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    lines = [
        json.dumps({"id": f"id-{n * 7919 % 1000}", "prompt": f"Tom has {n} pens. " * (n % 4 + 1)})
        for n in range(1, RECORDS + 1)
    ]
    for line in BAD:
        lines[line - 1] = "{"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def command(prompts, environment):
    """Starts `leapjax decode` into a folder."""

    def start(output, *more, driver=("-m", "leapjax.cli.main"), **process):
        argv = [sys.executable, *map(str, driver), "decode", "--model", str(MODEL)]
        argv += ["--input", str(prompts), "--output", str(output), "--max-errors", "2"]
        argv += ["--gen-length", "16", "--block-length", "8", "--batch-size", "4", "--details"]
        argv += ["--shard-size", "10", "--save-every", "0.05", "--cache", "dual", *more]
        return subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True, **process)

    return start


@pytest.fixture(scope="module")
def expected(command, tmp_path_factory):
    """Outputs of a run that nothing interrupts, and its number of bytes."""
    out = tmp_path_factory.mktemp("straight") / "out"
    finish(command(out))
    found = outputs(out)
    assert len(found) == RECORDS // 10 + 1
    told = json.loads((out / "summary.json").read_text())
    refreshes = told["last_run"]["refreshes"]
    assert refreshes["refreshed_rows"] == refreshes["refresh_rows_wanted"] == told["full_passes"]
    assert 0 < refreshes["estimated_share_of_time"] < 1
    assert sum(d.count(b"\n") for n, d in found.items() if n != "errors.jsonl") == RECORDS - 2
    return found


def outputs(out):
    names = [*out.glob("part-*.jsonl"), out / "errors.jsonl"]
    return {path.name: path.read_bytes() for path in sorted(names)}


def union(found):
    """The records in any order, as the contract has it."""
    return sorted(b"".join(data for name, data in found.items() if "part" in name).splitlines())


def finish(process):
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return error


def written(out):
    with contextlib.suppress(OSError):
        return sum(p.stat().st_size for p in out.iterdir() if "shard" in p.name or "part" in p.name)
    return 0


def wait_until(process, true, timeout=200):
    """False if the process ended before."""
    deadline = time.monotonic() + timeout
    while not true():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return True


def kill(process):
    process.kill()
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


def kill_at_random(command, out, expected, count, seed):
    """Kill the job `count` times, when it has written more and more; some times at its start."""
    rng = random.Random(seed)
    size = sum(map(len, expected.values()))
    points = sorted(rng.uniform(0, 0.8) * size for _ in range(count))
    killed = 0
    for point in points:
        process = command(out, "--resume")
        if point < size / 2 and rng.random() < 0.3:
            # While it starts, loads, or compiles; not when it is nearly done.
            then = time.monotonic() + rng.uniform(0, 3)
            wait_until(
                process, lambda at=then: time.monotonic() >= at or written(out) >= 0.8 * size
            )
        elif not wait_until(process, lambda at=point: written(out) >= at):
            break
        time.sleep(rng.uniform(0, 0.02))
        killed += kill(process)
    return killed


@contextlib.contextmanager
def killed_in_a_write(command, out, tmp_path, operation, number):
    """The job while it is half-way through an operation on its files; then it is killed."""
    marker = tmp_path / f"{operation}-{number}"
    process = command(out, "--resume", driver=(SLOW_DISK, marker, operation, number))
    assert wait_until(process, marker.exists), f"it ended before {operation} {number}"
    yield process
    assert kill(process)


def test_killed_and_resumed(command, expected, said, tmp_path):
    out = tmp_path / "out"
    with killed_in_a_write(command, out, tmp_path, "write shard.open", 14) as first:
        assert not next(out.glob("shard-*.open")).read_bytes().endswith(b"\n")
        _, error = (second := command(out, "--overwrite")).communicate(timeout=200)
        assert second.returncode == 2 and said(error).count("\n") == 1
        assert f"another job is writing there (process {first.pid} on " in error
    assert [*out.glob("process-*")]  # of a dead process, so it counts for nothing
    assert kill_at_random(command, out, expected, 2, seed=1) == 2
    with killed_in_a_write(command, out, tmp_path, "rename shard.open", 1):
        pass
    finish(command(out, "--resume"))
    assert outputs(out) == expected


def test_one_of_two_processes_is_lost_and_the_other_ends_the_job(command, expected, tmp_path):
    out = tmp_path / "out"
    driver = (SLOW_DISK, tmp_path / "marker", "sync shard.open", 3)  # stuck with a shard
    lost = command(out, "--resume", driver=driver)
    assert wait_until(lost, (tmp_path / "marker").exists)
    other = command(out, "--resume", "--batch-size", "3")  # which may differ
    assert wait_until(other, lambda: len(outputs_so_far(out)) >= 2)
    assert kill(lost)
    assert "answers, " in finish(other)
    assert outputs(out).keys() == expected.keys()
    told = [json.loads(x) for x in b"".join(outputs(out).values()).splitlines()]
    given = [json.loads(x) for x in b"".join(expected.values()).splitlines()]
    # Another batch size reorders float sums, which only confidences show.
    assert [t.get("output_ids") for t in told] == [g.get("output_ids") for g in given]
    assert {p.name for p in out.iterdir()} - expected.keys() == {"journal", "summary.json"}


@pytest.mark.slow
@pytest.mark.parametrize("store", ["local", "gcs"])
def test_storm(environment, store):
    """The full size is that of `scripts/job_storm.py --help`."""
    if store == "gcs":
        pytest.importorskip("gcsfs")
        pytest.importorskip("gcp_storage_emulator")
    argv = [sys.executable, str(ROOT / "scripts" / "job_storm.py"), "--store", store]
    argv += ["--records", "2000" if store == "local" else "200", "--processes", "4"]
    argv += ["--kills", "20" if store == "local" else "5", "--terms", "3"]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True)
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0


@pytest.mark.slow
def test_killed_at_twenty_points(command, expected, tmp_path):
    out = tmp_path / "out"
    operations = {
        "write shard.open": 5,
        "sync shard.open": 2,
        "write claim.new": 3,
        "rename claim.new": 2,
        "rename shard.open": 1,
        "renamed shard.open": 1,
    }
    for operation, number in operations.items():
        with killed_in_a_write(command, out, tmp_path, operation, number):
            pass
    assert kill_at_random(command, out, expected, 20, seed=20) == 20
    finish(command(out, "--resume"))
    assert union(outputs(out)) == union(expected)
    assert outputs(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdar-a", "fast-dllm-v2-a"])
def test_block_causal_rows_killed_and_resumed(command, tmp_path, name):
    """Slots lose the prefixes that they held; two samples of a prompt share all of it."""

    def start(output, *more, **process):
        own = ["--model", MODEL.with_name(name), "--cache", "block", "--num-samples", 2]
        return command(output, *map(str, own), "--temperature", "0.7", *more, **process)

    straight, out = tmp_path / "straight", tmp_path / "out"
    assert "prompt tokens prefilled" in finish(start(straight))
    expected = outputs(straight)
    assert kill_at_random(start, out, expected, 4, seed=4) == 4
    finish(start(out, "--resume", "--share-prefix", "off"))
    assert outputs(out) == expected
    told, off = (json.loads((o / "summary.json").read_text()) for o in (straight, out))
    assert told["answers"] == off["answers"] == 2 * (RECORDS - len(BAD)) and off["errors"] == 2
    prefill, last = told["last_run"]["prefill"], off["last_run"]["prefill"]
    assert prefill["prefilled"] <= 0.6 * prefill["wanted"] and last["ratio"] >= 2
    assert last["prefilled"] == last["wanted"] < prefill["wanted"]


def test_a_full_disk(command, expected, said, tmp_path):
    """A small filesystem of its own where that is allowed, else a limit on files' size."""
    out = tmp_path / "small" / "out"
    out.parent.mkdir()
    size = sum(map(len, expected.values()))
    room = size // 2 + 6 * 4096  # small files take a page each
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(out.parent)]
    mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    limit = min(len(d) for n, d in expected.items() if n != "errors.jsonl") // 2

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    try:
        process = command(out, preexec_fn=None if mounted else limited)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 2
        assert "can't be written (" + ("No space left" if mounted else "File too large") in error
        assert said(error).count("\n") == 1 and "--resume" in error
        assert len(outputs_so_far(out)) >= 1 if mounted else True
        if mounted:
            again = ["mount", "-o", f"remount,size={100 * size}", str(out.parent)]
            subprocess.run(again, check=True)
        finish(command(out, "--resume"))
        assert outputs(out) == expected
    finally:
        if mounted:
            subprocess.run(["umount", str(out.parent)], check=True)


def outputs_so_far(out):
    return list(out.glob("part-*.jsonl"))


@pytest.mark.parametrize(
    "number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_signals_leave_a_folder_to_resume(command, expected, said, tmp_path, number, status):
    out = tmp_path / "out"
    process = command(out)
    assert wait_until(process, lambda: written(out) > 0)
    before = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - before < 25
    assert process.returncode == status
    assert said(error) == (
        f"leapjax decode: stopped by {number.name}; run the same command with --resume to go on\n"
    )
    assert not [*out.glob("process-*")] and not (out / "summary.json").exists()
    if number == signal.SIGTERM:
        finish(command(out, "--resume"))
        assert outputs(out) == expected


STUCK = """
import time
from leapjax.signals import Signals
with Signals(lambda number: print("last words", number, flush=True), patience={patience}) as s:
    print("ready", flush=True)
    time.sleep(60)  # like a long compilation: the main thread does not look
"""


@pytest.mark.parametrize("patience, times", [(0.3, 1), (60, 2)], ids=["in time", "second signal"])
def test_a_process_that_does_not_look_is_ended(environment, patience, times):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK.format(patience=patience)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    before = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.communicate(timeout=30)[0] == "last words 15\n"
    assert process.returncode == 143 and time.monotonic() - before < 10


@pytest.mark.slow
def test_memory_is_constant(environment, tmp_path):
    """20,000 records: the peak of resident memory does not grow after the warm-up."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    with open(source, "w") as file:
        for n in range(20_000):
            # Lengths vary, but not with n: a length that first comes late compiles late.
            pens = f"{n * 7919 % 20_011:05d}"
            file.write(json.dumps({"prompt": f"Tom has {pens} pens and {n % 7} more."}) + "\n")
    argv = [sys.executable, "-m", "leapjax.cli.main", "decode", "--model", str(MODEL)]
    argv += ["--input", str(source), "--output", str(out), "--gen-length", "8"]
    argv += ["--block-length", "8", "--batch-size", "32"]
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
    watched, samples = psutil.Process(process.pid), []
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            samples.append((len(outputs_so_far(out)), watched.memory_info().rss / 1e6))
        time.sleep(0.5)
    assert process.returncode == 0, process.stderr.read()
    peaks = [max(rss for n, rss in samples if n <= done) for done in (5, 10, 15, 20)]
    print(f"peak RSS at 25, 50, 75, 100 %: {[round(p) for p in peaks]} MB")
    assert peaks[-1] - peaks[0] < 15
