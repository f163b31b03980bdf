"""The site: the reference is complete, drawings and tables are what their scripts make."""

import importlib
import importlib.util
import json
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import leapjax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
REFERENCE = "\n".join(p.read_text() for p in sorted((DOCS / "reference").glob("*.md")))
IDENTIFIERS = set(re.findall(r"^::: (\S+)$", REFERENCE, re.M))
NAMED = {re.sub(r"^converters\b", "leapjax.converters", name) for name in IDENTIFIERS} | set(
    re.findall(r"`(leapjax\.[\w.]+)`", REFERENCE)
)
PUBLIC = ("leapjax", "leapjax.decoding", "leapjax.policies", "leapjax.caches", "leapjax.models")
PUBLIC += ("leapjax.jobs.job", "leapjax.converters")


def located(identifier: str):
    """The object of an identifier; the converters are a folder of their own in a clone."""
    try:
        return pydoc.locate(re.sub(r"^converters\b", "leapjax.converters", identifier))
    except pydoc.ErrorDuringImport as e:
        if not isinstance(e.value, leapjax.UserError):
            raise
        return identifier  # the module of an extra that is not installed


def test_the_reference_has_every_public_name():
    documented = [located(name) for name in IDENTIFIERS]
    for package in PUBLIC:
        module = importlib.import_module(package)
        for name in module.__all__:
            full = f"{package}.{name}"
            elsewhere = any(getattr(module, name) is each for each in documented)
            assert full in NAMED or elsewhere, full


def test_the_reference_has_what_the_pages_import():
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for kind, body in FENCE.findall(page.read_text()):
            if kind != "python":
                continue
            for module, names in re.findall(r"^from (leapjax[\w.]*) import (.+)$", body, re.M):
                for name in re.findall(r"\w+", names.split("#")[0]):
                    full = f"{module}.{name}"
                    inside = any(known.startswith(f"{full}.") for known in NAMED)
                    assert full in NAMED or inside, (page.name, full)


def test_what_the_reference_names_exists():
    assert [name for name in sorted(IDENTIFIERS) if located(name) is None] == []


def drawing():
    spec = importlib.util.spec_from_file_location("draw", DOCS / "drawings" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_drawings_are_what_draw_makes():
    made = drawing().drawings()
    assert {p.stem for p in (DOCS / "drawings").glob("*.svg")} == set(made)
    for name, text in made.items():
        assert (DOCS / "drawings" / f"{name}.svg").read_text() == text, name


@pytest.mark.slow  # compiles a decode and the model's logits
def test_the_drawing_of_the_passes_is_a_decode():
    stored = json.loads((DOCS / "drawings" / "passes.json").read_text())
    measured = drawing().measure()
    for here, there in zip(stored.pop("passes"), measured.pop("passes"), strict=True):
        for old, new in zip(here, there, strict=True):
            assert old.pop("confidence") == pytest.approx(new.pop("confidence"), abs=2e-4)
            assert old == new
    assert stored == measured


def test_the_text_on_the_passes_agrees_with_them():
    text = (DOCS / "concepts" / "localleap.md").read_text()
    data = json.loads((DOCS / "drawings" / "passes.json").read_text())
    first = [p["commits"] for p in data["passes"][0]]
    assert f"{first.count('anchor')} of {len(first)} positions" in text
    for proposal in (p for proposals in data["passes"] for p in proposals):
        if proposal["commits"] != "anchor":
            assert f"{proposal['confidence']:.2f}" in text, proposal


@pytest.mark.slow  # some seconds of tracing; no compilation
def test_the_zoo_s_memory_is_what_its_script_prints(capsys):
    text = (DOCS / "zoo.md").read_text()
    [body] = [body for kind, body in FENCE.findall(text) if kind == "python"]
    exec(compile(body, "zoo.md", "exec"), {})
    printed = re.findall(r"\w[\w.-]*", capsys.readouterr().out)
    table = text[text.index("| model | parameters") : text.index("float32 takes twice")]
    rows = [line for line in table.splitlines()[2:] if line]
    assert len(rows) > 10
    for row in rows:
        words = re.findall(r"\w[\w.-]*", row)
        at = printed.index(words[0])
        assert printed[at : at + len(words)] == words


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == leapjax.__version__ and cited["license"] == "Apache-2.0"
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["title"] == "leapjax"
    [paper] = cited["references"]
    assert paper["url"].endswith("2510.07081") and len(paper["authors"]) == 7


def test_llms_txt_leads_somewhere():
    text = (ROOT / "llms.txt").read_text()
    assert text.startswith("# leapjax\n\n> ")
    links = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", text, re.M)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_issue_forms_are_well_formed():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = [p for p in folder.glob("*.yml") if p.name != "config.yml"]
    assert len(forms) >= 3
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form["name"] and form["description"], path.name
        for part in form["body"]:
            assert part["type"] in ("textarea", "input", "dropdown", "markdown"), path.name
            assert part["attributes"].get("label") or part["type"] == "markdown", path.name
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids)) > 0, path.name


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="NOT TESTED: no mkdocs (make docs)"
)
def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    # No page asks another host for a script, a style sheet, a font or a picture.
    asks = re.compile(r'<(?:script|img|link)[^>]+(?:src|href)="https?://[^"]+"')
    assert [(p, asks.search(p.read_text())[0]) for p in pages if asks.search(p.read_text())] == []
