"""Studies that are killed: the same command continues and says what an unbroken run says."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leapjax.cli.main import main
from leapjax.studies.store import AnswerStore

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")
MODEL = ["--model", LLADA, "--batch-size", "2"]
CANVAS = ["--gen-length", "16", "--block-length", "8"]
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

# A clock can't say where a busy machine is; the process dies behind its third answer.
DYING = """
import os, signal, sys
from leapjax.cli.main import main
from leapjax.studies.store import AnswerStore
add, left = AnswerStore.add, [3]
def last(self, answer):
    add(self, answer)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
AnswerStore.add = last
main(sys.argv[1:])
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
    "ablate": [*CANVAS, "--grid", "threshold=0.6,0.7,0.9", "radius=1,4", "relaxed_threshold=0.4"],
    "analyze": [*CANVAS, "--policies", "greedy,localleap"],
    "calibrate": [*CANVAS, "--task", "wordproblems", "--max-disagreement", "0.5"],
    "evaluate": [
        *CANVAS,
        "--policies",
        "schedule-2,localleap",
        "--templates",
        "2",
        "--equal",
        "steps",
    ],
    "rows": ["--reproduce", "all", "--published-as", "some/model"],
}
TIMES = {"seconds", "tokens_per_s", "command"}
ROWS = """
paper: A paper, arXiv 1
own: ours
model: some/model
template: user_turn
tasks: {gsm8k: 0}
decode: {gen_length: 16, block_length: 8}
expected: 50
tables:
  a: {methods: {ours: {decode: {policy: localleap}}}}
"""


def without_times(value):
    """A report without what differs from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def files(folder, pattern):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def answers(folder):
    """Every kept answer, in whatever order they came, without the time that it took."""
    lines = [x for data in files(folder, "answers-*").values() for x in data.split(b"\n")[1:-1]]
    return sorted(json.dumps(without_times(json.loads(x))) for x in lines)


@pytest.mark.parametrize(
    "name", [n if n == "rows" else pytest.param(n, marks=pytest.mark.slow) for n in STUDIES]
)
def test_a_killed_command_goes_on(name, tmp_path, capsys):
    """After SIGKILL the same command keeps what was decoded, and reports what a whole run does."""
    few = "12" if name == "rows" else "40"
    lines = [{"question": f"{i}?", "answer": f"so\n#### {i}"} for i in range(12)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "p.yaml").write_text(ROWS)
    more = ["--rows", str(tmp_path), "--data-dir", str(tmp_path)] if name == "rows" else []

    def argv(folder):
        command = "evaluate" if name == "rows" else name
        here = ["--limit", few, "--output", str(tmp_path / folder)]
        return [command, *MODEL, *STUDIES[name], *more, *here]

    dying = [sys.executable, "-c", DYING, *argv("killed")]
    ended = subprocess.run(dying, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kept, some = files(killed, "answers-*"), answers(killed)
    assert len(some) == 3
    assert main(argv("killed")) == main(argv("whole")) == 0
    capsys.readouterr()
    assert answers(killed) == answers(whole) and set(some) < set(answers(whole))
    for file, data in kept.items():  # nothing is decoded again: each answer is where it was
        found = (killed / file).read_bytes()
        assert found.startswith(data[: data.rfind(b"\n") + 1])
    for file in files(whole, "*.json"):
        told = [without_times(json.loads((f / file).read_text())) for f in (killed, whole)]
        assert told[0] == told[1]
    assert files(killed, "*.csv") == files(whole, "*.csv")
