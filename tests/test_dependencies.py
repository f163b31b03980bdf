"""What pyproject.toml asks users to install: only what the package imports, and little."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [re.split(r"[><=\[]", line)[0] for line in PROJECT["dependencies"]]
MODULES = {"pyyaml": "yaml", "orbax-checkpoint": "orbax"}
SOURCES = [p for part in ("leapjax", "converters") for p in (ROOT / part).rglob("*.py")]
IMPORT = re.compile(r"^ *(?:import|from) (\w+)", re.MULTILINE)


def test_core_dependencies_are_few():
    assert len(CORE) <= 12 and len(set(CORE)) == len(CORE)


def test_every_core_dependency_is_imported():
    found = {name for path in SOURCES for name in IMPORT.findall(path.read_text())}
    assert {MODULES.get(name, name) for name in CORE} <= found
