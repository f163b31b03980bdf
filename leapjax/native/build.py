"""Compile the kernels for this machine, once, and make them known to XLA."""

import atexit
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

from leapjax.compilation import cache_folder
from leapjax.progress import busy

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("kernels.cc")
_TARGETS = tuple(
    f"leapjax_{name}" for name in ("product", "route", "experts", "summary", "attention")
)
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-w")
# For this very processor; Clang knows the second where it doesn't know the first.
_FOR_THIS_CPU = ("-march=native", "-mcpu=native")


def available() -> bool:
    """Whether the kernels can be used; compiles them if they never were."""
    return panel() > 0


@functools.cache
def panel() -> int:
    """Columns of a panel of a packed matrix on this processor; 0 where there are no kernels.

    Compiling takes some seconds, the first time; the result is kept beside JAX's compiled programs
    (`leapjax.compilation.cache_folder`).
    """
    if os.environ.get("LEAPJAX_NATIVE", "").lower() == "off":
        return 0
    compiler = _compiler()
    if compiler is None:
        _log.info(
            "No C++ compiler found: decoding on this CPU uses XLA's products, which are slower"
        )
        return 0
    try:
        library = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as e:
        said = getattr(e, "stderr", None) or str(e)
        said = said.decode(errors="replace") if isinstance(said, bytes) else said  # of a timeout
        said = said.strip().splitlines() or [type(e).__name__]
        _log.warning(
            "The CPU kernels could not be compiled or loaded, XLA's products are used, which are "
            "slower (LEAPJAX_NATIVE=off asks for these): %s",
            next((line for line in said if "error" in line), said[0]),
        )
        return 0
    for name in _TARGETS:
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return library.leapjax_panel()


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _built(compiler: str) -> Path:
    """The library for this source, compiler, JAX and processor; compiled if it isn't there."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    parts = (_SOURCE.read_text(), jax.__version__, version.stdout, " ".join(_FLAGS), processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    base = cache_folder()
    folder = base / "native" if base else _passing_folder()
    library = folder / f"kernels-{key}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = _passing_folder()
        library = folder / library.name
    # Under another name first: whoever looks meanwhile finds all of it or nothing.
    handle, name = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        _compile(compiler, Path(name))
        os.replace(name, library)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return library


def _passing_folder() -> Path:
    """Where nothing can be kept: a folder that goes with the process."""
    folder = tempfile.mkdtemp(prefix="leapjax-native-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _compile(compiler: str, target: Path) -> None:
    command = [compiler, *_FLAGS, "-I", jax.ffi.include_dir(), str(_SOURCE), "-o", str(target)]
    for i, native in enumerate(_FOR_THIS_CPU):
        try:
            with busy("compiling the CPU kernels, once for this machine"):
                subprocess.run(
                    [*command, native], capture_output=True, text=True, check=True, timeout=300
                )
            return
        except subprocess.CalledProcessError:
            if i == len(_FOR_THIS_CPU) - 1:
                raise


def processor() -> str:
    """What tells this processor's abilities from others'."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
