import os
import secrets
import sys
import textwrap

import psutil
import pytest

from leapjax.errors import UserError
from leapjax.tasks import program_supervisor as supervisor
from leapjax.tasks.program_execution import run, run_all

LONG = 60.0  # a busy machine is slow


@pytest.mark.parametrize(
    ("source", "passed"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("this is no code", False),
        ("x = bytearray(3 * 10**9)", False),
        ("open('big', 'wb').write(b'x' * 10**7)", False),
        ("files = [open('program.py') for _ in range(300)]", False),
        ("import sys\nsys.stdin.close()\nprint('x' * 10**7)", True),
        ("def f(): return 3\nassert f() == 3\nif __name__ != '__main__': 1 / 0", True),
        ("import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))", True),
        ("assert input() == ''", False),  # nothing to read
        ("import os\nos.fork()", True),  # its copy's end does not count, nor disturb
        ("import threading as t, time\nt.Thread(target=time.sleep, args=[99]).start()", True),
    ],
)
def test_verdict(source, passed):
    assert run(source, LONG).passed is passed


@pytest.mark.parametrize(
    "source",
    [
        "sys.exit(0)",
        "os._exit(0)",
        "os.abort()",
        "os.execv('/bin/sh', ['sh', '-c', 'exit 0'])",
        "if os.fork():\n    os._exit(0)",
        "os.kill(os.getppid(), 9)",
        "import atexit\natexit.register(print, 'passed')\nsys.exit(0)",
        "import builtins\nbuiltins.exec = builtins.compile = print\nsys.exit(0)",
        "sys.exit = os._exit = os.write = print\n1 / 0",
        "import threading, time as t\nthreading.Timer(0, os._exit, [0]).start()\nt.sleep(99)",
        # Says on every channel that the end is reached, and repeats what it hears.
        """
        for fd in range(256):
            try:
                os.write(fd, b'e')
                os.write(fd, os.read(fd, 100))
            except OSError:
                pass
        os._exit(0)""",
    ],
)
def test_an_end_before_the_tests_is_no_pass(source):
    assert not run("import os, sys\n" + textwrap.dedent(source), 5.0).passed


@pytest.mark.parametrize(
    "found",
    [
        "vars(__import__('__main__')).values()",
        "[v for f in frames() for d in (f.f_locals, f.f_globals) for v in d.values()]",
        "[v for o in gc.get_objects() if type(o) is dict for v in o.values()]",
        "[*os.environ.values(), *sys.argv, *sys.orig_argv]",
        "[read(p) for p in ('environ', 'cmdline', *(f'fd/{n}' for n in range(256)))]",
        "[read(p) for p in glob.glob('../../*') + glob.glob('*') if os.path.isfile(p)]",
    ],
)
def test_nothing_in_the_process_makes_a_pass(found):
    """It writes all that it finds to all that is open, what looks like a secret last."""
    source = f"""\
import gc, glob, os, re, sys
def frames(frame=None):
    frame = sys._getframe()
    while frame := frame.f_back:
        yield frame
def read(name):
    try:
        file = os.open(os.path.join('/proc/self', name), os.O_RDONLY | os.O_NONBLOCK)
        return os.read(file, 10**5)
    except OSError:
        return b''
found = [x.encode() if isinstance(x, str) else x for x in {found}]
found = [x for x in found if isinstance(x, bytes)]
found.sort(key=lambda x: bool(re.fullmatch(rb'[0-9a-f]{{16,}}\\s*', x)))
for fd in range(256):
    try:
        os.set_blocking(fd, False)
        for x in found:
            os.write(fd, x)
    except OSError:
        pass
os._exit(0)
"""
    assert run(source, 5.0).reason == "failed"


def _alive(tag: str) -> list[int]:
    found = psutil.process_iter(["cmdline", "status"])
    return [p.pid for p in found if tag in (p.info["cmdline"] or [])]


@pytest.mark.skipif(sys.platform != "linux", reason="others leave the group and live on")
@pytest.mark.parametrize(("end", "reason"), [("time.sleep(999)", "timed out"), ("", "passed")])
def test_nothing_that_it_started_lives_on(end, reason):
    """A grandchild in a session of its own, whose parent has ended."""
    tag = secrets.token_hex(8)
    source = f"""\
import subprocess, sys, time
orphan = "print('here', flush=True); import time; time.sleep(999)"
middle = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
command = [sys.executable, "-c", middle, sys.executable, "-c", orphan, {tag!r}]
with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
    assert child.stdout.readline() == b"here\\n"
    child.stdout.close()
{end}
"""
    assert run(source, 3.0).reason == reason
    assert _alive(tag) == []


@pytest.mark.skipif(sys.platform != "linux", reason="not limited elsewhere")
def test_processes_are_limited():
    source = """\
import os, time
for count in range(2000):
    try:
        if not os.fork():
            time.sleep(999)
    except BlockingIOError:
        break
assert 10 < count < 400
"""
    timeout = LONG + secrets.randbelow(10**9) / 1e9  # part of its command line
    assert run(source, timeout).passed
    assert _alive(str(timeout)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="not limited elsewhere")
def test_a_fork_bomb_ends():
    source = """\
import os, time
until = time.monotonic() + 20  # if the test fails
while time.monotonic() < until:
    try:
        os.fork()
    except OSError:
        pass
"""
    timeout = 0.5 + secrets.randbelow(10**9) / 1e10
    assert run(source, timeout).reason == "timed out"
    assert _alive(str(timeout)) == []


@pytest.mark.skipif(os.getuid() != 0, reason="root only")
def test_it_does_not_run_as_root():
    source = """\
import os
assert len({*os.getresuid(), *os.getresgid()}) == 1 and os.getuid() != 0 and not os.getgroups()
try:
    os.setuid(0)
except PermissionError:
    open('mine', 'w').write('x')
else:
    assert False
"""
    assert run(source, LONG).passed


def test_it_runs_in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_TOKEN", "x")
    source = (
        "import os\nassert os.listdir() != []\nopen('made', 'w').write('x')\n"
        f"assert os.getcwd() != {os.getcwd()!r}\nassert 'SECRET_TOKEN' not in os.environ"
    )
    assert run(source, LONG).passed
    assert os.listdir(tmp_path) == []


def test_where_programs_cannot_run_no_answer_counts_as_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "__file__", str(tmp_path / "gone.py"))
    with pytest.raises(UserError, match=r"can't be run on this machine \(.*gone\.py"):
        run("assert True", LONG)


def test_order():
    seen = []
    made = run_all(["assert True", "assert False", "x = 1"], LONG, seen.append)
    assert [o.passed for o in made] == [True, False, True] and seen == [1, 2, 3]
