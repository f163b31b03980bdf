"""The structure that the code keeps, counted in the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from leapjax.caches import CACHES
from leapjax.policies import PARAMETERS, POLICIES
from leapjax.policies.parameters import SCHEDULED
from leapjax.types import Proposal

ROOT = Path(__file__).parents[1]


def sources(without: str = "") -> dict[str, str]:
    """Text of the code's files by path; those below the folder `without` are left out."""
    roots = ("leapjax", "converters", "scripts")
    files = [p for root in roots for p in ROOT.glob(f"{root}/**/*.py")]
    paths = {p.relative_to(ROOT).as_posix(): p for p in sorted(files)}
    return {n: p.read_text() for n, p in paths.items() if not without or not n.startswith(without)}


def cache_branches(source: str) -> Iterator[str]:
    """Comparisons with, and tables keyed by, the name of a cache."""
    names = set(CACHES)
    for node in ast.walk(ast.parse(source)):
        said = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)} & names
        if isinstance(node, ast.Compare):
            # "none" and "prefix" are words of other options too.
            found = said and ("cache" in ast.unparse(node).lower() or "dual" in said)
        elif isinstance(node, ast.Dict):
            keys = {k.value for k in node.keys if isinstance(k, ast.Constant)}
            found = len(keys & names) > 1
        else:
            found = isinstance(node, ast.MatchValue) and said - {"none"}
        if found:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_only_caches_branch_on_the_name_of_a_cache():
    """Elsewhere the cache is asked: `stores`, `exact`, `columns(program)`, …"""
    elsewhere = sources(without="leapjax/caches/")
    assert len(elsewhere) > 150
    found = [f"{name}, {b}" for name, text in elsewhere.items() for b in cache_branches(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        'if program.cache == "none": pass',
        'x = 0 if config.cache != "none" else 1',
        'assert cache in ("none", "dual")',
        'n = {"none": 2, "dual": 10}[case.cache]',
        'match cache:\n    case "prefix": pass',
    ],
)
def test_a_branch_is_found(line):
    assert list(cache_branches(line))


def test_other_words_are_no_branch():
    assert not list(cache_branches('if shape == "none" or kind in ("prefix", "suffix"): pass'))
    assert not list(cache_branches('own = {"policy": "low_confidence", "cache": "none"}'))


def test_only_policies_say_what_parameters_there_are():
    """Options, records, jobs and the loop take them from the registry; studies choose settings."""
    names = PARAMETERS.keys() - {p.name for p in SCHEDULED} - {"threshold"}
    names -= set(Proposal._fields)  # `margin` is a field that policies need, too
    studies = ("leapjax/studies/", "leapjax/benchmarks/", "scripts/")
    found = [
        f"{name}, line {node.lineno}: {node.value}"
        for name, text in sources(without="leapjax/policies/").items()
        if not name.startswith(studies)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not found, "\n".join(found)


def test_nobody_branches_on_the_name_of_a_policy():
    """A policy says what it needs, what it may do, and in which rows of tables it is shown."""
    found = [
        f"{name}, line {node.lineno}: {ast.unparse(node)}"
        for name, text in sources(without="leapjax/policies/").items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Compare) and "policy" in ast.unparse(node)
        if {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)} & set(POLICIES)
    ]
    assert not found, "\n".join(found)


# What asks for a platform, or for how a weight lies in memory: only `leapjax.ops` may.
PLATFORM = re.compile(
    r"default_backend\(|\.platform\b(?!\s*==\s*\"(linux|darwin|win32))|platform_dependent"
    r"|isinstance\([^)]*\b(Packed|PackedMatrices|Matrices|Arranged|Stacked|Unrolled)\b"
    r"|\.(head\.pieces|weights\.packed)\b|jnp\.uint16|hardware\.on_cpu"
)


def platform_questions(sources: dict[str, str]) -> list[str]:
    """Lines that ask where a program runs or how a weight is stored."""
    found = (
        (n, i, line)
        for n, text in sources.items()
        for i, line in enumerate(text.split("\n"), 1)
        if PLATFORM.search(line.replace("sys.platform", ""))
    )
    return [f"{n}, line {i}: {line.strip()}" for n, i, line in found]


def test_only_operations_ask_where_they_run():
    allowed = {"leapjax/ops/": None, "leapjax/native/": None, "leapjax/benchmarks/machine.py": 1}
    found = platform_questions(sources())
    for place, most in allowed.items():
        own = [line for line in found if line.startswith(place)]
        assert most is None or len(own) <= most, own
        found = [line for line in found if not line.startswith(place)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        'if jax.default_backend() == "cpu": pass',
        'if device.platform == "gpu": pass',
        'if isinstance(layer["o"], Packed): pass',
        "words = leaf.dtype == jnp.uint16",
    ],
)
def test_a_question_is_found(line):
    assert platform_questions({"x.py": line})


def functions(text: str) -> Iterator[ast.FunctionDef]:
    """The functions of a file."""
    return (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))


def test_the_block_is_written_once():
    """One function calls attention and the MLP; the gate is XLA's operations' and the experts'."""
    package = {n: t for n, t in sources().items() if not n.startswith("scripts/")}
    called = {
        (name, function.name)
        for name, text in package.items()
        for function in functions(text)
        if {"attention", "mlp"} <= {
            getattr(n.func, "attr", getattr(n.func, "id", ""))
            for n in ast.walk(function) if isinstance(n, ast.Call)
        }
    }  # fmt: skip
    assert called == set()  # attention is the pass's own, the MLP the block's
    called = {
        (n, f.name)
        for n, t in package.items()
        for f in functions(t)
        if "ops.mlp(" in ast.unparse(f)
    }
    assert called == {("leapjax/models/transformer.py", "layer_block")}
    gated = [name for name, text in package.items() if "nn.silu(" in text]
    assert gated == ["leapjax/ops/experts.py", "leapjax/ops/xla.py"]


def test_files_are_short():
    """At most 400 lines, one purpose each."""
    long = {name: text.count("\n") for name, text in sources().items() if text.count("\n") > 400}
    assert not long
