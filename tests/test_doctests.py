"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITH_EXAMPLES = [
    path.relative_to(ROOT).with_suffix("")
    for folder in ("leapjax", "converters")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples(path):
    names = path.parts[:-1] if path.name == "__init__" else path.parts
    if names[0] == "converters":
        names = ("leapjax", *names)
    found = doctest.testmod(importlib.import_module(".".join(names)))
    assert found.attempted and not found.failed
