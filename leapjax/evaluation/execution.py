"""Run generated programs: one process each, with limits, in a folder that is thrown away.

    source ─▶ temporary folder ─▶ python -I, limits on CPU, memory, files ─▶ reached its end?

This protects from accidents (endless loops, floods of memory or output), not from an
adversary: a program still sees the file system and the network as the user does. Run it in
a container if the model is not trusted.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

# Three seconds are those of the `code_eval` metric, which the papers' scorers use.
TIMEOUT_S = 3.0
MEMORY_BYTES = 2**30
OUTPUT_BYTES = 2**20

# The limits are set in the child, by Python itself, so that no code runs between fork and
# exec of a process with threads. The token on stdin tells an early exit from the end; it is no
# secret from a program that looks for it in its own process.
_LAUNCHER = """\
import resource, sys
cpu, memory, output = map(int, sys.argv[1:4])
resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if sys.platform != "darwin":
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
token, end = sys.stdin.readline(), sys.__stderr__
source = open(sys.argv[4], encoding="utf-8").read()
exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
end.write(token)
end.flush()
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
      passed: it ran to its end, without an exception or an early exit.
      reason: `passed`, `failed` or `timed out`.
    """

    passed: bool
    reason: str


def run(source: str, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES) -> Outcome:
    """Run one program to its end.

    Args:
      source: Python.
      timeout_s: wall time, in seconds.
      memory_bytes: address space; not limited on macOS, which can't.

    Returns:
      Its outcome; the process and everything it started in its group are gone.
    """
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="leapjax-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "program.py"
        file.write_text(source, encoding="utf-8", errors="replace")
        said = Path(folder) / "stderr"
        limits = [str(n) for n in (int(timeout_s) + 1, memory_bytes, OUTPUT_BYTES)]
        with open(said, "wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _LAUNCHER, *limits, str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            try:
                process.communicate(token.encode() + b"\n", timeout=timeout_s)
            except subprocess.TimeoutExpired:
                return Outcome(False, "timed out")
            finally:
                _end(process)
        passed = process.returncode == 0 and said.read_bytes().endswith(token.encode() + b"\n")
    return Outcome(passed, "passed" if passed else "failed")


def _end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


def run_all(
    sources: Sequence[str],
    timeout_s: float = TIMEOUT_S,
    show: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Run programs, as many at a time as there are cores, but at most four.

    Args:
      sources: Python programs.
      timeout_s: wall time of each, in seconds.
      show: takes the number of programs that have ended.

    Returns:
      Outcomes in the programs' order.
    """
    workers = min(4, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        out = []
        for outcome in pool.map(lambda source: run(source, timeout_s), sources):
            out.append(outcome)
            show(len(out))
    return out
