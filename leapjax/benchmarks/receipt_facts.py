"""What a receipt says of the device and of the versions, and nothing else about the machine."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax

import leapjax
from leapjax import native
from leapjax.ops import hardware
from leapjax.serve.memory import device_limit, memory_limit
from leapjax.sharding import local_devices

CPU_FACTS = Path("/proc/cpuinfo")
ROOT = Path(leapjax.__file__).parents[1]


def device() -> dict[str, Any]:
    """The devices of this process: platform, kind, count, memory; the host's cores and load."""
    devices = local_devices()
    kind = str(devices[0].device_kind)
    return {
        "platform": hardware.name(),
        # A CPU is called just that.
        "kind": _processor() or kind if kind == hardware.name() else kind,
        "count": len(devices),
        "memory_bytes": device_limit(devices[0]) or memory_limit(),
        "host_cores": len(os.sched_getaffinity(0)),
        "host_load": os.getloadavg()[0],
        "native_kernels": hardware.name() == "cpu" and native.available(),
    }


def versions() -> dict[str, Any]:
    """Of leapjax, with its commit if known, of what it runs on, and of the system."""
    commit, changed = _commit()
    return {
        "leapjax": leapjax.__version__,
        "commit": commit,
        "changed": changed,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "libtpu": _version("libtpu"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        # Whether, not what: values may name files.
        "compiler_flags": any(os.environ.get(n) for n in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor(facts: Path = CPU_FACTS) -> str | None:
    """The processor's name as the system states it."""
    try:
        found = re.search(r"^model name\s*: *(.+)$", facts.read_text(), re.M)
    except OSError:
        return None
    return " ".join(found.group(1).split()) if found else None


def _commit(root: Path = ROOT) -> tuple[str | None, bool]:
    """The commit that this package is of, if known, and whether its files were changed since.

    It is known in a clone, and where pip installed from a repository.
    """
    if (root / ".git").exists():
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        return _git(root, "rev-parse", "HEAD") or None, bool(changed)
    try:
        text = importlib.metadata.distribution("leapjax").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None, False
    return json.loads(text or "{}").get("vcs_info", {}).get("commit_id"), False


def _git(root: Path, *words: str) -> str:
    """What git answers; nothing if it can't."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
