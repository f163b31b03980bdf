"""Slurm on this machine: one node, its daemons in the foreground of a folder of their own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    lacking = [name for name in NEEDED if not find(name)]
    if lacking:
        return f"no {lacking[0]} (Debian: apt-get install slurm-wlm)"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


def find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextlib.contextmanager
def running(folder: Path):
    """The environment in which Slurm's commands find the cluster."""
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    config.write_text(
        CONFIG.format(folder=folder, host=host, ports=_free_ports(2), cpus=os.cpu_count())
    )
    env = {**os.environ, "SLURM_CONF": str(config)}
    munge = ["--key-file", key, "--socket", folder / "munge.socket", "--pid-file"]
    munge += [folder / "munge.pid", "--log-file", folder / "munge.log", "--seed-file"]
    daemons = [
        [find("munged"), "--foreground", "--force", *munge, folder / "munge.seed"],
        [find("slurmctld"), "-D", "-i", "-f", config],
        [find("slurmd"), "-D", "-f", config],
    ]
    started = []
    try:
        for daemon in daemons:
            with (folder / f"{Path(daemon[0]).name}.out").open("wb") as out:
                started.append(subprocess.Popen(daemon, env=env, stdout=out, stderr=out))
            if len(started) == 1:
                wait_for((folder / "munge.socket").exists, "munged", 30)
        wait_for(lambda: "idle" in run(env, "sinfo", "-h", "-o", "%T", check=False), "a node", 60)
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def run(env, *command, check=True) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.strip()


def wait_for(condition, what: str, seconds: float):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"no {what} within {seconds:g} s"
        time.sleep(0.2)
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
