"""What every test runs under: 8 virtual CPU devices, strict shapes and dtypes, no surprises.

`JAX_COMPILATION_CACHE_DIR` speeds up reruns and doesn't hide compilations from the counter.
"""

import contextlib
import gc
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import threading

import hypothesis
import pytest

# Whoever starts tests in the background may have SIGINT ignored, and processes would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything starts the backend; a test session that inherits a device count keeps it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Tests compile thousands of tiny programs: compile them quickly rather than well. Commands that
# tests start as processes get the same flags; speed itself is `scripts/benchmark.py`'s, and `make
# test-goldens` (LEAPJAX_TEST_OPTIMISED) compiles as users do.
_QUICKLY = (
    "--xla_backend_optimization_level=0",
    # No MLIR emitters: half of the compiler's time and more.
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_llvm_disable_expensive_passes=true",
)


def _known_to_xla(flags):
    """Whether this XLA takes the flags; it ends the process if not."""
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": " ".join(flags)},
        capture_output=True,
    )
    return done.returncode == 0


def _compile_quickly():
    """Set XLA_FLAGS, once a session: workers inherit them."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    if _QUICKLY[0] in flags:
        return
    known = _QUICKLY
    if not _known_to_xla(known):
        known = [flag for flag in _QUICKLY if _known_to_xla([flag])]
    os.environ["XLA_FLAGS"] = " ".join([*flags, *known])


if os.environ["JAX_PLATFORMS"] == "cpu" and "LEAPJAX_TEST_OPTIMISED" not in os.environ:
    _compile_quickly()

# Commands keep compiled programs between runs; those of tests leave nothing behind.
_PROGRAMS = tempfile.TemporaryDirectory(prefix="leapjax-tests-")
os.environ.setdefault("LEAPJAX_CACHE_DIR", _PROGRAMS.name)

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Deterministic, so that a red run is red again; `--hypothesis-profile=search` looks further.
_QUIET = {
    "deadline": None,  # a first example compiles
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("steady", derandomize=True, **_QUIET)
hypothesis.settings.register_profile("search", max_examples=1000, **_QUIET)
hypothesis.settings.load_profile("steady")


def pytest_addoption(parser):
    """Options of this suite."""
    parser.addoption(
        "--write-support", action="store_true", help="write docs/support.md from what passed"
    )
    parser.addoption(
        "--write-notebooks", action="store_true", help="store what the notebooks print now"
    )
    parser.addoption("--fuzz-seed", type=int, default=0, help="first seed of tests/fuzz")
    parser.addoption("--fuzz-count", type=int, default=2400, help="cases of tests/fuzz")
    parser.addoption("--fuzz-case", help="one case of tests/fuzz, as a failure prints it")


class Compilations:
    """Names of the programs that XLA compiled, in order, since the session began."""

    def __init__(self):
        self.names = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            name = str(details.get("fun_name", "?"))
            self.names.append(name.removeprefix("jit(").removesuffix(")"))

    @contextlib.contextmanager
    def seen(self):
        """Yields a list that holds, after the block, what was compiled inside."""
        inside, start = [], len(self.names)
        try:
            yield inside
        finally:
            inside += self.names[start:]

    @contextlib.contextmanager
    def none(self):
        """Fails if the block compiles anything, and says what."""
        with self.seen() as inside:
            yield
        if inside:
            pytest.fail(f"unexpected compilations: {', '.join(inside)}")


_compilations = Compilations()


def _forget_programs():
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop each module's compiled programs."""
    yield
    _forget_programs()
    gc.freeze()  # what is left stays: later collections need not look through it


_looked = 0  # programs that were compiled when the memory maps were last counted


@pytest.fixture(autouse=True)
def room_for_programs():
    """A program is up to a hundred memory maps, of which Linux gives a process 65,530."""
    global _looked
    yield
    if len(_compilations.names) - _looked > 100:
        _looked = len(_compilations.names)
        maps = pathlib.Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
            _forget_programs()


@pytest.fixture(autouse=True, scope="session")
def no_late_lines():
    """Commands in this process never say what takes them long, as on a busy machine it may."""
    from leapjax import progress

    progress.PATIENCE = threading.TIMEOUT_MAX


@pytest.fixture(scope="session")
def kernels():
    """Compiled for the processes that tests start: a killed one would leave that to the next."""
    from leapjax import native

    native.available()


@pytest.fixture(scope="session")
def said():
    """`said(stderr)`: without the lines of what took long, as on a busy machine it may."""
    return lambda stderr: "".join(x for x in stderr.splitlines(True) if not x.endswith(" …\n"))


@pytest.fixture
def without_kernels(monkeypatch):
    """On this CPU, XLA's products, as where there is no C++ compiler."""
    from leapjax import native

    monkeypatch.setattr(native, "available", lambda: False)


@pytest.fixture
def registry():
    """The registry of policies, after the test as it was before."""
    from unittest.mock import patch

    from leapjax.policies import PARAMETERS, POLICIES, ROWS

    with patch.dict(POLICIES), patch.dict(PARAMETERS), patch.dict(ROWS):
        yield


@pytest.fixture
def compilations():
    """`with compilations.none(): ...` fails on a compilation; `.seen()` lists them."""
    return _compilations


@pytest.fixture
def no_compilation(compilations):
    """Shorthand: `with no_compilation(): ...`."""
    return compilations.none


def pytest_report_header(config):
    """Which jax, and what it sees."""
    return f"jax {jax.__version__}, {jax.device_count()} {jax.default_backend()} devices"


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """What the session cost; every skip and its reason again, where it is hard to miss."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(u.ru_utime + u.ru_stime for u in used)
    terminalreporter.line(f"{seconds:.0f} s of processor time, workers and commands included")
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons = {}
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    terminalreporter.section("NOT TESTED HERE, and why", sep="=", yellow=True)
    for reason, tests in reasons.items():
        terminalreporter.line(f"{len(tests)} skipped: {reason} ({tests[0]}, ...)")
