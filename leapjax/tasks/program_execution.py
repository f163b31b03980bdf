"""Run generated programs: one process each, with limits, in a folder that is thrown away.

    source ─▶ temporary folder ─▶ supervisor ─▶ worker: limits, program ─▶ reached its end?

This protects from accidents (endless loops, floods of memory, output or processes) and from
simple cheating (leaving early, printing). It is no security boundary: a program reads the
file system and uses the network as the user does, shares its interpreter with its tests, and
can deceive program_supervisor.py if it is written to. Run it in a container if the model is not
trusted.

What limits processes: root's programs run as a user of their own, whose 64 processes and
threads are counted apart (not where root may not change users: there nothing limits them).
Other users' programs may start 256 beyond what the user already runs. Not limited on macOS.
"""

import concurrent.futures
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from leapjax.errors import UserError
from leapjax.tasks import program_supervisor as supervisor

# Three seconds are those of the `code_eval` metric, which the papers' scorers use.
TIMEOUT_S = 3.0
MEMORY_BYTES = 2**30
OUTPUT_BYTES = 2**20

_START_S = 30.0  # a busy machine starts Python slowly


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool  # it ran to its end, without an exception or an early exit
    reason: str  # `passed`, `failed` or `timed out`


def run(source: str, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES) -> Outcome:
    """Run a Python program to its end, within a wall time and (not on macOS, which can't) a memory.

    Then the program's process and all those that it started are gone (outside Linux: those of its
    process group).
    """
    with tempfile.TemporaryDirectory(prefix="leapjax-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "program.py").write_text(source, encoding="utf-8", errors="replace")
        limits = [str(n) for n in (timeout_s, memory_bytes, OUTPUT_BYTES)]
        process = subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__, *limits],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            said = process.communicate(timeout=timeout_s + _START_S)[1]
        except subprocess.TimeoutExpired:
            return Outcome(False, "timed out")
        finally:
            _end(process)
    status = process.returncode
    if status == supervisor.PASSED:
        return Outcome(True, "passed")
    if status == supervisor.TIMED_OUT:
        return Outcome(False, "timed out")
    if status == supervisor.FAILED or status < 0:  # killed by the program, or for want of memory
        return Outcome(False, "failed")
    reason = (said.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
    raise UserError(f"generated programs can't be run on this machine ({reason[:300]})")


def _end(process: subprocess.Popen) -> None:
    process.terminate()  # it ends what it supervises, then itself
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_all(
    sources: Sequence[str],
    timeout_s: float = TIMEOUT_S,
    show: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Run programs, as many at a time as there are cores, but at most four.

    `timeout_s` is the wall time of each; `show` takes the number of programs that have ended. The
    outcomes are in the programs' order.
    """
    workers = min(4, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        out = []
        for outcome in pool.map(lambda source: run(source, timeout_s), sources):
            out.append(outcome)
            show(len(out))
    return out
