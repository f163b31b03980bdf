"""Put each seeded fault into a copy of the tree and see the quick tests go red.

    python tests/faults/run.py [--only NAME] [--all-tests]

A fault that no test catches asks for a test.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
HANGS = 1800  # seconds
# What the tests read; links suffice where no fault goes.
LINKED = ("converters", "configs", "docs", "scripts", "README.md", "CHANGELOG.md", "setup.py")


@dataclasses.dataclass(frozen=True)
class Fault:
    """A change of one place.

    Attributes:
      name: what goes wrong.
      file: where, from the root.
      old: text that occurs there once.
      new: what takes its place.
      tests: files of the quick tests that should notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file with the fault.

        Raises:
          ValueError: `old` does not occur exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.old!r} occurs {count} times in {self.file}")
        return text.replace(self.old, self.new)


def faults() -> list[Fault]:
    """The faults of `faults.toml`, in its order."""
    listed = tomllib.loads((ROOT / "tests/faults/faults.toml").read_text())["fault"]
    return [Fault(**one | {"tests": tuple(one["tests"])}) for one in listed]


def copy(folder: Path) -> None:
    """The tree as the tests need it, ready to be damaged."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("leapjax", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)


def caught(fault: Fault, folder: Path, everything: bool) -> tuple[bool, str]:
    """Whether a test goes red, and the line that says which."""
    path = folder / fault.file
    whole = path.read_text()
    path.write_text(fault.applied(whole))
    tests = () if everything else fault.tests
    command = [sys.executable, "-m", "pytest", "-q", "-x", *(() if everything else ("-n", "0"))]
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", *tests],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANGS,
        )
    except subprocess.TimeoutExpired:
        return False, f"no end after {HANGS} s"
    finally:
        path.write_text(whole)
    lines = done.stdout.splitlines()
    red = [line for line in lines if line.startswith("FAILED ")]
    # Status 1: tests failed. Anything else (a name that does not import) proves nothing.
    if done.returncode == 1 and red:
        return True, red[0][:160]
    return False, lines[-1] if lines else f"status {done.returncode}"


def main() -> int:
    """Try the faults; status 1 if one gets through."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAME", action="append", help="this fault (repeatable)")
    parser.add_argument(
        "--all-tests", action="store_true", help="run all of make test, not the files it names"
    )
    args = parser.parse_args()
    listed = faults()
    if unknown := set(args.only or ()) - {fault.name for fault in listed}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    chosen = [fault for fault in listed if not args.only or fault.name in args.only]
    missed = []
    with tempfile.TemporaryDirectory(prefix="leapjax-faults-") as name:
        copy(Path(name))
        for fault in chosen:
            began = time.monotonic()
            red, line = caught(fault, Path(name), args.all_tests)
            if not red:
                missed.append(fault.name)
            took = time.monotonic() - began
            print(f"{'caught' if red else 'MISSED'} {fault.name} ({took:.0f} s)\n       {line}")
            sys.stdout.flush()
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
