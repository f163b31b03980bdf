"""Real processes under jax.distributed: one job, killed and resumed with other numbers."""

import json
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from leapjax.errors import UserError
from leapjax.jobs import peers
from tests.jobs.test_kill import MODEL, union, wait_until

RECORDS = 60
BAD = 14
WITHIN = 60  # seconds after a death in which all others must end


@pytest.fixture(scope="module")
def environment(environment):
    """Without flags, and without what would say that there are several processes."""
    several = ("SLURM", "OMPI", "KUBERN")
    kept = {name: value for name, value in environment.items() if not name.startswith(several)}
    return kept | {"XLA_FLAGS": ""}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    lines = [
        json.dumps({"id": f"id-{n * 7919 % 1000}", "prompt": f"Tom has {n} pens. " * (n % 4 + 1)})
        for n in range(1, RECORDS + 1)
    ]
    lines[BAD - 1] = "{"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def start(prompts, environment):
    """Starts `leapjax decode` in so many processes; None is one without any flag."""
    running = []

    def begin(output, count, *more, flags=None, source=prompts):
        own = [[]] if count is None else [own_flags(count, n) for n in range(count)]
        for n, arguments in enumerate(own):
            argv = [sys.executable, "-m", "leapjax.cli.main", "decode", "--model", str(MODEL)]
            argv += ["--input", str(source), "--output", str(output), "--max-errors", "1"]
            argv += ["--gen-length", "16", "--block-length", "8", "--batch-size", "4"]
            argv += ["--shard-size", "8", "--save-every", "0.05", "--details", "--resume"]
            argv += [*arguments, *more]
            environ = environment | (flags[n] if flags else {})
            if flags:
                argv = argv[: len(argv) - len(arguments) - len(more)] + [*more]
            process = subprocess.Popen(argv, env=environ, stderr=subprocess.PIPE, text=True)
            running.append(process)
        return running[len(running) - len(own) :]

    port = None

    def own_flags(count, n):
        nonlocal port
        if n == 0:
            port = free_port()
        where = f"localhost:{port}"
        return ["--coordinator", where, "--num-processes", str(count), "--process-id", str(n)]

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def expected(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "out"
    finish(start(out, None))
    found = outputs(out)
    assert len(found) == 8 + 1
    return found


def outputs(out):
    names = [*out.glob("part-*.jsonl"), out / "errors.jsonl"]
    return {path.name: path.read_bytes() for path in sorted(names)}


def finish(processes, timeout=300):
    said = [process.communicate(timeout=timeout)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


def complete(out, expected):
    assert outputs(out) == expected
    assert union(outputs(out)) == union(expected)
    left = {p.name for p in out.iterdir()} - expected.keys()
    assert left == {"journal", "summary.json"}


def shards_in(out):
    return len([*out.glob("part-*.jsonl")])


def wait_for_end(processes, within=WITHIN):
    """What each said, once all have ended by themselves in time."""
    deadline = time.monotonic() + within
    return [p.communicate(timeout=max(deadline - time.monotonic(), 0.1))[1] for p in processes]


def slowed(out):
    """Enough is done that everybody is at it, and enough is left."""
    return 2 <= shards_in(out) <= 6


def test_two_processes_and_the_outputs_of_one(start, tmp_path):
    """Quick: twelve records, short answers; all of it is in the slow tests too."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(f'{{"prompt": "Tom has {n} pens."}}\n' for n in range(12)))
    small = ("--gen-length", "8", "--shard-size", "3")
    finish(start(tmp_path / "one", None, *small, source=few))
    said = finish(start(tmp_path / "two", 2, *small, source=few))
    one, two = (tmp_path / name for name in ("one", "two"))
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())
    for part in one.glob("part-*"):
        assert (two / part.name).read_bytes() == part.read_bytes()
    summary = json.loads((two / "summary.json").read_text())
    assert summary["last_run"]["processes"] == 2 and summary["answers"] == 12
    assert said[0].startswith("12 answers") and said[0].count("\n") == 1 and said[1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_outputs_are_those_of_one_process(start, expected, tmp_path, count):
    out = tmp_path / "out"
    finish(start(out, count))
    complete(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("after", [None, 3])
def test_a_killed_process_ends_the_others(start, expected, tmp_path, victim, after):
    out = tmp_path / "out"
    processes = start(out, 2)
    assert wait_until(processes[victim], lambda: shards_in(out) >= 2)
    processes[victim].kill()
    began = time.monotonic()
    said = wait_for_end(processes)
    assert time.monotonic() - began < WITHIN
    assert processes[victim].returncode == -signal.SIGKILL
    assert processes[1 - victim].returncode not in (0, None), said
    assert not (out / "summary.json").exists()
    print("ended after", round(time.monotonic() - began, 1), processes[1 - victim].returncode)
    finish(start(out, after))
    complete(out, expected)


@pytest.mark.slow
def test_one_process_then_three_then_one(start, expected, tmp_path):
    out = tmp_path / "out"
    for count, enough in ((None, 1), (3, 3)):
        processes = start(out, count)
        assert wait_until(processes[0], lambda enough=enough: shards_in(out) >= enough)
        processes[-1].kill()
        wait_for_end(processes)
        assert processes[-1].returncode == -signal.SIGKILL
    finish(start(out, None))
    complete(out, expected)


@pytest.mark.slow
def test_block_causal_rows_in_several_processes(start, tmp_path):
    more = ("--model", str(MODEL.with_name("sdar-a")), "--temperature", "0.7", "--num-samples", "2")
    one, out = tmp_path / "one", tmp_path / "out"
    finish(start(one, None, *more))
    first = start(out, 3, *more)
    assert wait_until(first[0], lambda: shards_in(out) >= 1)
    first[1].kill()
    wait_for_end(first)
    finish(start(out, 2, *more))
    complete(out, outputs(one))
    told = json.loads((out / "summary.json").read_text())["last_run"]
    assert told["processes"] == 2 and told["prefill"]["prefilled"] < told["prefill"]["wanted"]


@pytest.mark.slow
def test_a_signal_to_all(start, expected, tmp_path):
    out = tmp_path / "out"
    processes = start(out, 3)
    assert wait_until(processes[0], lambda: shards_in(out) >= 2)
    before = time.monotonic()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    said = wait_for_end(processes, 25)
    assert time.monotonic() - before < 25
    assert [p.returncode for p in processes] == [143] * 3, said
    line = "leapjax decode: stopped by SIGTERM; run the same command with --resume to go on\n"
    heard = "leapjax decode: saving; again to stop now\n"  # by those that needed a moment
    assert [text.removeprefix(heard) for text in said] == [line] * 3
    finish(start(out, 2))
    complete(out, expected)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_in_good_order(start, expected, tmp_path):
    out = tmp_path / "out"
    processes = start(out, 2)
    assert wait_until(processes[0], lambda: shards_in(out) >= 2)
    processes[1].send_signal(signal.SIGTERM)
    said = wait_for_end(processes)
    assert [p.returncode for p in processes] == [143] * 2, said
    assert "process 1 ended (stopped by SIGTERM)" in said[0] and said[0].count("\n") == 1
    finish(start(out, 4))
    complete(out, expected)


@pytest.mark.slow
def test_slurm_s_environment_is_enough(start, expected, tmp_path):
    """What `srun` sets, on one host, without any flag."""
    flags = [
        {
            "SLURM_JOB_ID": str(free_port()),
            "JAX_COORDINATOR_PORT": str(free_port()),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(n),
            "SLURM_LOCALID": str(n),
        }
        for n in range(2)
    ]
    flags[1]["JAX_COORDINATOR_PORT"] = flags[0]["JAX_COORDINATOR_PORT"]
    out = tmp_path / "out"
    finish(start(out, 2, flags=flags))
    complete(out, expected)
    assert json.loads((out / "summary.json").read_text())["last_run"]["processes"] == 2


@pytest.mark.slow
def test_a_mesh_that_is_too_large_ends_all(start, tmp_path):
    processes = start(tmp_path / "out", 2, "--mesh", "data=2")
    said = wait_for_end(processes)
    assert [p.returncode for p in processes] == [2, 2]
    assert all("needs 2 devices, here are 1" in s and s.count("\n") == 1 for s in said), said
    assert not (tmp_path / "out").exists()


REFUSED = {
    "stdin": (["--input", "-", "--output", "out"], "stdin: several processes"),
    "a file": (["--input", "in.jsonl", "--output", "o.jsonl"], "--output folder only"),
    "stdout": (["--input", "in.jsonl"], "--output folder only"),
    "a prompt": (["--prompt", "Hi"], "--output folder only"),
    "chat": (["--chat"], "--output folder only"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path, monkeypatch, capsys):
    from leapjax.cli import decode

    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    given, message = REFUSED[case]
    flags = ["--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "0"]
    assert decode.main([*given, *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert decode.main([*given, *flags[:4]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "go together" in error
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("environ, count", [({}, 1), ({"SLURM_NTASKS": "4"}, 4)])
def test_without_jaxs_own_detection_the_environment_is_asked(monkeypatch, environ, count):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "jax._src.clusters", None)
    notes = []
    assert peers.count_of(None, None, None, notes.append) == count and len(notes) == (count > 1)


def test_a_jax_that_keeps_its_store_elsewhere_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax._src.distributed", None)
    with pytest.raises(UserError, match=rf"jax {jax.__version__} keeps .* --num-processes 1"):
        peers._connected()
