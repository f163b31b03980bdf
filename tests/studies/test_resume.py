"""Studies that are killed: the same command continues and says what an unbroken run says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leapjax.cli.main import main
from leapjax.studies.store import AnswerStore

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")
SMALL = ["--model", LLADA, "--gen-length", "16", "--block-length", "8", "--batch-size", "2"]
KILLED = """
import os, signal, sys
from pathlib import Path
from leapjax.studies.store import AnswerStore
store = AnswerStore(Path(sys.argv[1]), "x", {"a": 1})
for i in range(5):
    store.add({"id": str(i), "text": "é" * i})
store._stream.write(b'{"id": "5", "te')
store._stream.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_store_keeps_every_whole_answer(tmp_path):
    argv = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(argv, timeout=60).returncode == -signal.SIGKILL
    with AnswerStore(tmp_path, "x", {"a": 1}) as store:
        assert {i: a["text"] for i, a in store.answers.items()} == {
            str(i): "é" * i for i in range(5)
        }
        store.add({"id": "5", "text": ""})
    with AnswerStore(tmp_path, "x", {"a": 1}) as store:
        assert len(store.answers) == 6


STUDIES = {
    "ablate": ["--grid", "threshold=0.6,0.7,0.8,0.9", "radius=1,4", "relaxed_threshold=0.4"],
    "analyze": ["--policies", "greedy,localleap"],
    "calibrate": ["--task", "wordproblems", "--max-disagreement", "0.5"],
    "evaluate": ["--policies", "schedule-2,localleap"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_killed_command_goes_on(name, tmp_path, capsys):
    def argv(folder):
        return [name, *SMALL, *STUDIES[name], "--limit", "40", "--output", str(tmp_path / folder)]

    def answers(folder):
        """The answers, in whatever order they came, without the time that they took."""
        lines = [
            x for p in (tmp_path / folder).glob("answers-*") for x in p.read_text().split("\n")
        ]
        found = [json.loads(x) for x in lines if x.startswith('{"id"')]
        return sorted(json.dumps(x | {"seconds": 0}) for x in found)

    process = subprocess.Popen(
        [sys.executable, "-m", "leapjax.cli.main", *argv("killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(answers("killed")) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = answers("killed")
    assert kept
    assert main(argv("killed")) == main(argv("whole")) == 0
    capsys.readouterr()
    assert answers("killed") == answers("whole") and set(kept) < set(answers("whole"))
    for file in (tmp_path / "whole").glob("*.csv"):
        assert (tmp_path / "killed" / file.name).read_bytes() == file.read_bytes()
