"""Several processes on one job: how they find each other, and notice each other's end.

`jax.distributed` connects them. Process 0 runs a small service that holds keys and values and
notices dead processes; no other module uses it. Decoding needs no connection: each process uses
its own devices.

When a process dies without a word, the service's heartbeat aborts the others. A process that
fails or is stopped in good order says so first, and the others save.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pkgutil
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from leapjax.errors import UserError

HEARTBEAT = 20  # seconds of silence after which a process counts as dead
FAREWELL = 10.0  # seconds that process 0 waits for the others, as the service ends with it
_PAUSE = 0.05  # seconds between the first two looks for an answer
_LONGEST_PAUSE = 2.0  # later
_PATIENCE = 15.0  # seconds of waiting for the others before a note
_LOOK = 1.0  # seconds between two looks whether a peer has ended


class PeerEnded(UserError):
    """Another process of the job has ended early, so this one ends too.

    Attributes:
      status: exit status of the other process.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Peers:
    """The processes of a job; without arguments, this process alone.

    Args:
      store: the key-value store of all processes, jax's client (`key_value_set`,
        `key_value_try_get`, `key_value_dir_get`).
      index: number of this process, from 0; an attribute too.
      count: number of processes; an attribute too.
    """

    def __init__(self, store: Any = None, index: int = 0, count: int = 1):
        self._store, self.index, self.count = store, index, count
        self._looked = 0.0

    def gather(self, name: str, value: str, stop: Callable[[], Any] = lambda: None) -> list[str]:
        """The values of all processes, in their order; waits until each has given one.

        Args:
          name: name of this exchange, used once.
          value: the value of this process.
          stop: called while waiting; may raise.

        Raises:
          PeerEnded: a process has ended instead.
        """
        if self._store is None:
            return [value]
        self._store.key_value_set(f"leapjax/{name}/{self.index}", value)
        pause = _PAUSE
        while True:
            found = self._store.key_value_dir_get(f"leapjax/{name}/")
            if len(found) == self.count:
                return [v for _, v in sorted((int(k.rsplit("/", 1)[1]), v) for k, v in found)]
            self._look()
            stop()
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    def check(self) -> None:
        """Raise `PeerEnded` if another process has ended early; looks once a second."""
        now = time.monotonic()
        if self._store is not None and now - self._looked >= _LOOK:
            self._looked = now
            self._look()

    def _look(self) -> None:
        assert self._store is not None
        try:
            said = self._store.key_value_try_get("leapjax/end")
        except Exception:  # no such key; if the service is gone, jax ends this process
            return
        index, status, why = said.split(" ", 2)
        if int(index) != self.index:
            raise PeerEnded(
                f"process {index} ended ({why}); what is saved is kept: run the same command "
                "with --resume",
                int(status),
            )

    def leave(self, status: int, why: str = "") -> NoReturn:
        """End this process, and tell the others if the job isn't done.

        Python's own exit would wait for processes that may be gone.

        Args:
          status: exit status.
          why: one line for the others.
        """
        try:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            if self._store is not None:
                self._say_farewell(self._store, status, why)
        finally:
            os._exit(status)

    def _say_farewell(self, store: Any, status: int, why: str) -> None:
        if status:
            with contextlib.suppress(Exception):  # another process was first
                store.key_value_set("leapjax/end", f"{self.index} {status} {why}")
        with contextlib.suppress(Exception):
            store.key_value_set(f"leapjax/left/{self.index}", str(status))
            deadline = time.monotonic() + FAREWELL
            while self.index == 0 and time.monotonic() < deadline:
                if len(store.key_value_dir_get("leapjax/left/")) == self.count:
                    return
                time.sleep(_PAUSE)


def count_of(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    note: Callable[[str], None] = lambda line: None,
) -> int:
    """The number of processes by the flags, or else by the environment.

    It starts no backend and connects nothing.

    Args:
      coordinator: `HOST:PORT` of process 0.
      num_processes: their number; 1 alone means one process, whatever the environment says.
      process_id: number of this process, from 0.
      note: takes a line about an environment that can't be used.

    Raises:
      UserError: the flags are incomplete or impossible.
    """
    flags = (coordinator, num_processes, process_id)
    if flags == (None, 1, None):
        return 1
    if any(f is not None for f in flags):
        if coordinator is None or num_processes is None or process_id is None:
            raise UserError(
                "--coordinator, --num-processes and --process-id go together; give all three, or "
                "none to take them from the environment"
            )
        if not re.fullmatch(r"\S+:\d{1,5}", coordinator):
            raise UserError(f"--coordinator {coordinator}: expected HOST:PORT")
        if process_id >= num_processes:
            raise UserError(
                f"--process-id is {process_id}, but with --num-processes {num_processes} they are "
                f"0 to {num_processes - 1}"
            )
        return num_processes
    try:  # jax has no public way to ask this before its processes are connected
        from jax._src.clusters import ClusterEnv

        kinds = list(ClusterEnv._cluster_types)
    except (ImportError, AttributeError):
        return _count_said(note)
    for kind in kinds:
        if kind.opt_in_only_method:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Kubernetes packages that nobody needs
                if kind.is_env_present():
                    return kind.get_process_count()
        except Exception as e:  # each kind has its own, such as a pod that belongs to no job
            reason = " ".join(str(e).split())[:200]
            note(
                f"{kind.name} was found, but not its processes ({type(e).__name__}: {reason}); "
                "going on as one process"
            )
            return 1
    return 1


def _count_said(note: Callable[[str], None]) -> int:
    """The number of processes by the launchers' variables, without jax's own detection."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    said = {
        "SLURM_NTASKS": os.environ.get("SLURM_NTASKS", "1"),
        "OMPI_COMM_WORLD_SIZE": os.environ.get("OMPI_COMM_WORLD_SIZE", "1"),
        "TPU_WORKER_HOSTNAMES": str(hosts.count(",") + 1),
    }
    for name, count in said.items():
        if count.isdecimal() and int(count) > 1:
            note(f"{name} says {count} processes (this jax can't be asked)")
            return int(count)
    return 1


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Peers:
    """Connect the processes; call it before jax starts a backend.

    Args:
      coordinator: as for `count_of`, which has checked the flags.
      num_processes: see `count_of`.
      process_id: see `count_of`.
      note: takes a line if other processes are late; after 5 minutes jax ends this process.

    Raises:
      UserError: they can't find each other.
    """
    import jax

    # The service would swallow the first SIGTERM, which `leapjax.signals` handles.
    jax.config.update("jax_enable_preemption_service", False)
    _compile_apart()
    chosen: dict[str, Any] = {}
    if coordinator is not None:
        chosen = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    waiting = threading.Timer(_PATIENCE, note, ["waiting for the other processes"])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, **chosen)
    except Exception as e:
        reason = " ".join(str(e).split())[:300]
        where = f"--coordinator {coordinator}" if coordinator else "jax.distributed"
        raise UserError(f"{where}: the processes can't find each other ({reason})") from e
    finally:
        waiting.cancel()
    return Peers(*_connected())


def _connected() -> tuple[Any, int, int]:
    """The key-value store, the number of this process, and the number of processes.

    jax has no public name for the store.

    Raises:
      UserError: this version of jax keeps it elsewhere.
    """
    import jax

    try:
        from jax._src.distributed import global_state as state

        if state.client is not None:
            return state.client, state.process_id, state.num_processes
    except (ImportError, AttributeError):
        pass
    raise UserError(
        f"jax {jax.__version__} keeps the processes' key-value store elsewhere than leapjax knows; "
        "install another version of jax, or decode with --num-processes 1"
    )


def _compile_apart() -> None:
    """On GPUs, let no process wait for another's autotuning.

    XLA shares autotuning between processes that compile the same program; ours compile what their
    records need. Elsewhere the flag is not set, because XLA may drop it.
    """
    found = importlib.util.find_spec("jax_plugins")
    if found is None:
        return
    flags, name = os.environ.get("XLA_FLAGS", ""), "xla_gpu_shard_autotuning"
    plugins = [m.name for m in pkgutil.iter_modules(found.submodule_search_locations)]
    if name not in flags and any(p.startswith(("xla_cuda", "xla_rocm")) for p in plugins):
        os.environ["XLA_FLAGS"] = f"{flags} --{name}=false".strip()
