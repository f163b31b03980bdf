"""What is uploaded: wheel and sdist of the same bytes from every copy of the sources."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = [name for name in ("build", "twine") if importlib.util.find_spec(name) is None]
PARTS = ("leapjax", "converters", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def built(folder: Path, date: float) -> dict[str, bytes]:
    """Wheel and sdist of a copy of the sources whose files have a date of their own."""
    source = folder / "source"
    source.mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / part, source / part, ignore=skip)
        else:
            shutil.copy(ROOT / part, source)
    for path in source.rglob("*"):
        os.utime(path, (date, date))
    (source / "LICENSE").chmod(0o600 if date < 1e9 else 0o664)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    fixed = {"SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        [*command, str(source)], env=os.environ | fixed, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.name: path.read_bytes() for path in (folder / "dist").iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(bool(TOOLS), reason=f"NOT TESTED: no {' and no '.join(TOOLS)} (make extras)")
def test_wheel_and_sdist_are_reproducible_and_pass_twine(tmp_path):
    one, other = built(tmp_path / "a", 9e8), built(tmp_path / "b", 1.6e9)
    assert sorted(Path(name).suffix for name in one) == [".gz", ".whl"]
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    files = [str(tmp_path / "a" / "dist" / name) for name in one]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
