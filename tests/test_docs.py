"""The pages: links and pictures exist, commands are ones that the parsers take."""

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from leapjax import policies
from leapjax.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    return [t for t in LINK.findall(prose(page)) if "://" not in t and not t.startswith("mailto:")]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).lower() for h in headings]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_picture_and_page_is_shown_somewhere():
    linked = {
        (page.parent / link.split("#")[0]).resolve() for page in PAGES for link in links(page)
    }
    assert {p for p in (ROOT / "docs").iterdir() if p.suffix in (".png", ".md")} <= linked


def commands(page: Path) -> list[tuple[str, bool]]:
    """Commands of a page, and whether they are complete (in a block, not within a sentence)."""
    text = page.read_text()
    blocks = [body for kind, body in FENCE.findall(text) if kind in ("", "sh")]
    indented = re.findall(r"(?:^    .*\n)+", prose(page), re.M)
    lines = "\n".join([*blocks, *indented]).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`([^`]+)`", prose(page))
    found = [(line, True) for line in lines] + [(" ".join(s.split()), False) for s in spans]
    start = r"(?:^|[\s'])(?<!--model )(?:leapjax|(?:python )?scripts/\w+\.py)(?= [a-z-])"
    return [(line, whole) for line, whole in found if re.search(start, line)]


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    importlib.import_module(f"leapjax.cli.{name}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_parse(page):
    for line, whole in commands(page):
        text = re.split(r"\s+[|>] |[;&]", line)[0]
        words = shlex.split(text.replace("'", " "), comments=True)
        script = next((w for w in words if re.fullmatch(r"(?:.*/)?scripts/\w+\.py", w)), None)
        if script:
            assert (ROOT / "scripts" / Path(script).name).exists(), line
            name, rest = Path(script).stem, words[words.index(script) + 1 :]
        elif "leapjax" in words and words.index("leapjax") + 1 < len(words):
            at = words.index("leapjax")
            name, rest = words[at + 1], words[at + 2 :]
        else:
            continue
        if name not in COMMANDS:
            known = ("help", "x", "COMMAND", "--help", "--version")
            assert script or name in known or "leapjax.integrations" in line, line
            continue
        parser = parser_of(name)
        for flag in (w.split("=")[0] for w in rest if w.startswith("--")):
            assert flag in parser._option_string_actions, (line, flag)
        if whole and "…" not in rest:
            parser.parse_args(rest)
        for file in (w for w in rest if re.match(r"configs/.*\.ya?ml$", w)):
            assert (ROOT / file).exists(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_can_be_pasted(page):
    for kind, body in FENCE.findall(page.read_text()):
        if kind == "python":
            tree = ast.parse(body)
            for node in tree.body:  # `name = (value,)` is an argument cut out of its call
                cut = isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
                assert not cut or len(node.value.elts) > 1, body


def test_every_policy_has_a_row():
    rows = re.findall(r"^\|(.+?)\|", (ROOT / "docs" / "policies.md").read_text(), re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(policies.POLICIES)


@pytest.mark.slow  # compiles a decode
def test_the_readme_s_python_answers_rightly(capsys):
    [body] = [body for kind, body in FENCE.findall(PAGES[0].read_text()) if kind == "python"]
    exec(compile(body, "README.md", "exec"), {})
    assert "#### 17" in capsys.readouterr().out


def test_the_readme_s_measurements_are_those_of_the_pages():
    text, pages = PAGES[0].read_text(), {}
    for name in ("performance", "evaluation"):
        pages[name] = (ROOT / "docs" / f"{name}.md").read_text().replace("-", "−")
    speed = text[text.index("**Speed:") : text.index("([command and conditions]")]
    for number in re.findall(r"\d+\.\d+|\b\d{3}\b", speed):
        assert number in pages["performance"], number
    table = text[text.index("| policy | right") : text.index("On templates kept out")]
    for cell in re.findall(r"\| ([−+\d][^|]*) (?=\|)", table):
        assert cell in pages["evaluation"], cell


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_files_exist(page):
    names = re.findall(
        r"`((?:leapjax|tests|converters|scripts|configs|docs)/[\w./*-]*)`", prose(page)
    )
    for name in names:
        if "NAME" not in name and not name.endswith("/x.py"):
            assert list(ROOT.glob(name.rstrip("/"))), name
