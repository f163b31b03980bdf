"""What the machine does to a command is one line and status 2; faults keep their traceback."""

import errno
import os
import subprocess
import sys

import jax
import pytest

from leapjax.cli import main as cli
from leapjax.cli.common import run_main
from leapjax.jobs import job
from leapjax.jobs.job import JobSpec
from tests.jobs.fakes import FakeLM, write_input

DEVICE = jax.errors.JaxRuntimeError
FAILURES = {
    "the device is out of memory": DEVICE("RESOURCE_EXHAUSTED: out of memory\nallocating 9 GiB"),
    "the device failed": DEVICE("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS"),
    "no usable accelerator": RuntimeError("Unable to initialize backend 'cuda': no device"),
    "this machine is out of memory": MemoryError(),
    "nested too deeply": RecursionError("maximum recursion depth exceeded"),
    "set PYTHONIOENCODING=utf-8": UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range"),
    "can't be read or written (No space": OSError(errno.ENOSPC, "No space left on device"),
}


@pytest.mark.parametrize("line", FAILURES)
def test_a_failure_of_the_machine_is_one_line(line, capsys):
    def command(argv):
        raise FAILURES[line]

    assert run_main(command, [], "leapjax x") == 2
    said = capsys.readouterr().err
    assert said.startswith("leapjax x: error: ") and said.count("\n") == 1 and line in said


@pytest.mark.parametrize("error", [ValueError("a fault"), RuntimeError("a fault"), KeyError("x")])
def test_a_fault_keeps_its_traceback(error):
    def command(argv):
        raise error

    with pytest.raises(type(error)):
        run_main(command, [], "leapjax x")


@pytest.mark.parametrize("error", [DEVICE("RESOURCE_EXHAUSTED: x"), MemoryError()])
def test_a_folder_job_keeps_what_is_finished_when_the_device_fails(tmp_path, error):
    prompts = write_input(tmp_path / "in.jsonl", 12)

    def spec(out, **more):
        return JobSpec(prompts, str(tmp_path / out), shard_size=5, **more)

    class Failing(FakeLM):
        def answer(self, request):
            if len(self.answered) == 8:
                raise error
            return super().answer(request)

    with pytest.raises(type(error)):
        job.run(Failing(), spec("out"))
    again = FakeLM()
    job.run(again, spec("out", resume=True))
    assert len(again.answered) == 5  # the first seven are kept
    job.run(FakeLM(), spec("straight"))
    for part in (tmp_path / "straight").glob("part-*"):
        assert (tmp_path / "out" / part.name).read_bytes() == part.read_bytes()


def ends(shell, *argv, **environ):
    """How `leapjax` ends under a shell's redirection: status and stderr."""
    line = " ".join(["exec", sys.executable, "-m", "leapjax.cli.main", *argv, shell])
    done = subprocess.run(
        ["sh", "-c", line], env=os.environ | environ, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "shell, argv, what",
    [
        (">/dev/full", ["--version"], "No space left"),
        (">/dev/full", ["decode", "--help"], "No space left"),
        (">&-", ["plan", "--help"], "stdout: can't be read or written (closed)"),
        ("<&-", ["decode", "--input", "-"], "stdin: can't be read or written (closed)"),
    ],
)
def test_streams_that_are_full_or_closed(shell, argv, what):
    status, said = ends(shell, *argv)
    assert status == 2 and said.count("\n") == 1 and what in said, said


def test_no_usable_accelerator():
    status, said = ends("", "decode", "--prompt", "x", JAX_PLATFORMS="cuda")
    assert status == 2 and said.count("\n") == 1 and "no usable accelerator" in said, said


def test_help_and_version(capsys):
    assert cli.main(["--version"]) == 0 and cli.main(["--help"]) == 0
