"""What pyproject.toml asks users to install: only what the package imports, and little."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [re.split(r"[><=\[]", line)[0] for line in PROJECT["dependencies"]]
MODULES = {"pyyaml": "yaml", "orbax-checkpoint": "orbax"}
IMPORTS = set(
    re.findall(
        r"^ *(?:import|from) (\w+)",
        "\n".join(
            p.read_text() for d in ("leapjax", "converters") for p in (ROOT / d).rglob("*.py")
        ),
        re.MULTILINE,
    )
)


def test_core_dependencies_are_few():
    assert len(CORE) <= 13 and len(set(CORE)) == len(CORE)


def test_every_core_dependency_is_imported():
    assert {MODULES.get(name, name) for name in CORE} <= IMPORTS
