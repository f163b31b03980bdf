"""Calls in a process of their own, which may die and takes nothing along.

The TPU compiler ends its process where a check of its own fails, which no `except` catches, and
a thread can't be stopped that takes too long.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from leapjax.errors import UserError

# The answer has a descriptor of its own: whatever the compiler prints goes to stderr. No core
# dumps, which would be as large as the model's program.
_CHILD = """\
import os, pickle, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
answer = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
sys.path[:] = pickle.load(sys.stdin.buffer)
from leapjax.planning.isolated import answered
answered(sys.stdin.buffer, answer)
"""

# As the compiler's logging writes its last message: F1126 21:17:34.123456 31197 file.cc:12] text
_FATAL = re.compile(r"^F\d{4} [\d:.]+ +\d+ (\S+?)\] *(.*)", re.MULTILINE)


class Ended(Exception):
    """The process gave no answer.

    `how`: `aborted`, `crashed`, `killed` or `timed out`; `reason`: one line, of the process's last
    words; may be empty.
    """

    def __init__(self, how: str, reason: str = ""):
        super().__init__(f"{how}: {reason}" if reason else how)
        self.how = how
        self.reason = reason

    @property
    def lasting(self) -> bool:
        """Another try would end alike; a process is killed for this machine's lack of memory."""
        return self.how in ("aborted", "crashed")


def call(function: Callable[..., Any], *args: Any, timeout_s: float) -> Any:
    """Call a function in a new process, on the CPU.

    `function`: a module's own, found in the child by its name; `timeout_s`: wall time, in seconds.
    Raises UserError: the function raised it; Ended: the process died or took too long;
    RuntimeError: the function raised something else; the message has its traceback.
    """
    job = pickle.dumps(sys.path) + pickle.dumps((function, args))
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        try:
            out, _ = process.communicate(job, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise Ended("timed out", f"after {timeout_s:g} s") from None
        finally:
            process.kill()
            process.wait()
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
    if process.returncode < 0:
        raise ended(-process.returncode, said)
    if process.returncode > 0:
        raise RuntimeError(f"a process of its own failed:\n{said[-4000:]}")
    fine, value = pickle.loads(out)
    if not fine:
        raise UserError(value)
    return value


def answered(job, answer) -> None:
    """The child's part: one call, read from a file and answered in another.

    `job`: binary file with the pickled function and arguments; `answer`: binary file that gets
    (True, result) or (False, a user's mistake).
    """
    function, args = pickle.load(job)
    try:
        out = True, function(*args)
    except UserError as e:
        out = False, str(e)
    with answer:
        pickle.dump(out, answer)


def ended(number: int, said: str) -> Ended:
    """How a process ended that a signal stopped.

    `number`: of the signal; `said`: its stderr, where the compiler's logging leaves a line that
    begins with F.
    """
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number in (signal.SIGKILL, signal.SIGTERM):
        return Ended("killed", f"{name}; does this machine have too little memory?")
    how = "aborted" if number == signal.SIGABRT else "crashed"
    words = _FATAL.search(said)
    if words is None:
        return Ended(how, name)
    place, text = words.groups()
    text = text.partition(", metadata=")[0]  # of the instruction that it failed at: pages
    return Ended(how, f"{name}, {place}: {' '.join(text.split())[:200]}")
