import os
import time

import pytest

from leapjax.evaluation.execution import run, run_all

LONG = 60.0  # a busy machine starts Python slowly


@pytest.mark.parametrize(
    ("source", "passed"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("this is no code", False),
        ("import sys\nsys.exit(0)\nassert False", False),  # leaves before its tests
        ("import os\nos._exit(0)", False),
        ("x = bytearray(3 * 10**9)", False),
        ("open('big', 'wb').write(b'x' * 10**7)", False),
        ("import sys\nsys.stdin.close()\nprint('x' * 10**7)", True),
        ("def f(): return 3\nassert f() == 3\nif __name__ != '__main__': 1 / 0", True),
        ("assert input() == ''", False),  # nothing to read, and no token in sight
    ],
)
def test_verdict(source, passed):
    assert run(source, LONG).passed is passed


def test_timeout_ends_the_children_too(tmp_path):
    """A grandchild in the program's group dies with it: its file stops growing."""
    file = tmp_path / "ticks"
    child = (
        f"import time\nwhile True:\n    open({str(file)!r}, 'a').write('x')\n    time.sleep(0.02)\n"
    )
    source = (
        "import subprocess, sys, time, os\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not os.path.exists({str(file)!r}):\n    time.sleep(0.01)\n"
        "time.sleep(1000)\n"
    )
    outcome = run(source, 8.0)
    assert not outcome.passed and outcome.reason == "timed out"
    size = file.stat().st_size
    time.sleep(0.3)
    assert file.stat().st_size == size > 0


def test_it_runs_in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_TOKEN", "x")
    source = (
        "import os\nassert os.listdir() != []\nopen('made', 'w').write('x')\n"
        f"assert os.getcwd() != {os.getcwd()!r}\nassert 'SECRET_TOKEN' not in os.environ"
    )
    assert run(source, LONG).passed
    assert os.listdir(tmp_path) == []


def test_order():
    seen = []
    made = run_all(["assert True", "assert False", "x = 1"], LONG, seen.append)
    assert [o.passed for o in made] == [True, False, True] and seen == [1, 2, 3]
