"""docs/recipes/slurm.sh, read, and submitted to Slurm on this machine."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from leapjax.cli.main import main
from tests.recipes import cluster

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "slurm.sh"
QUESTION = "Hal has 4 pens and gets {} more. How many pens now?"


def test_it_is_a_script_that_bash_takes():
    subprocess.run(["bash", "-n", RECIPE], check=True)
    options = re.findall(r"^#SBATCH (\S+)$", RECIPE.read_text(), re.M)
    assert {"--requeue", "--no-kill", "--open-mode=append", "--signal=TERM@120"} <= {*options}
    assert len(options) == RECIPE.read_text().count("#SBATCH ")


def stand_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("status, requeued", [(0, False), (2, False), (143, True)])
def test_only_a_job_that_was_stopped_goes_back_into_the_queue(tmp_path, status, requeued):
    """With stand-ins for Slurm's commands, which note how they are called."""
    for name, code in (("srun", status), ("scontrol", 0)):
        stand_in(tmp_path, name, f'echo "$@" > {tmp_path}/{name}.called; exit {code}')
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", RECIPE], env=env | {"OUTPUT": "here"}, capture_output=True)
    assert done.returncode == status
    words = shlex.split((tmp_path / "srun.called").read_text())
    assert words[2:4] == ["leapjax", "decode"] and words[words.index("--output") + 1] == "here"
    assert (tmp_path / "scontrol.called").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.called").read_text() == "requeue 17\n"


@pytest.mark.slow
@pytest.mark.skipif(bool(cluster.missing()), reason=cluster.missing())
def test_a_submitted_job_is_stopped_goes_on_and_ends(tmp_path):
    """SIGTERM, as before a time limit or when a node is taken back; the queue starts it again."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    records = [{"id": f"q{n}", "prompt": QUESTION.format(n)} for n in range(120)]
    given = tmp_path / "records.jsonl"
    given.write_text("".join(json.dumps(r) + "\n" for r in records))
    stand_in(tmp_path, "leapjax", f'exec {sys.executable} -m leapjax.cli.main "$@"')
    output = tmp_path / "answers"
    with cluster.running(folder) as env:
        env |= {
            "PATH": f"{tmp_path}:{env['PATH']}",
            "MODEL": str(Path(main.__code__.co_filename).parents[1] / "data" / "wordproblems"),
            "INPUT": str(given),
            "OUTPUT": str(output),
            "OPTIONS": "--batch-size 4 --shard-size 20 --save-every 0 --progress",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        }
        here = ["--nodes=1", "--gres=none", "--time=30", f"--output={tmp_path}/log"]
        submitted = ["sbatch", "--parsable", "--export=ALL", *here, str(RECIPE)]
        job = cluster.run(env, *submitted)

        def state():
            shown = cluster.run(env, "scontrol", "show", "job", job)
            return dict(re.findall(r"(JobState|Restarts)=(\S+)", shown))

        def log():
            return (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""

        cluster.wait_for(lambda: [*output.glob("part-*")], f"shard:\n{log()}", 300)
        cluster.run(env, "scancel", "--signal=TERM", f"{job}.0")
        cluster.wait_for(lambda: state()["Restarts"] == "1", "restart", 120)
        assert "stopped by SIGTERM" in log() and "the job goes back into the queue" in log()
        assert not (output / "summary.json").exists()
        cluster.wait_for(lambda: state()["JobState"] in ("COMPLETED", "FAILED"), "end", 400)
        assert state()["JobState"] == "COMPLETED", log()
    answers = "".join(p.read_text() for p in sorted(output.glob("part-*"))).splitlines()
    assert [json.loads(a)["id"] for a in answers] == [r["id"] for r in records]
    assert json.loads((output / "summary.json").read_text())["last_run"]["answers"] < 120
