"""The notebooks: they run, what is stored in them is what they print, and they use public names.

`make notebooks` executes them and stores the outputs.
"""

import ast
import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
VARIES = "varies"  # tag of cells whose output is another one each time
MACHINE = re.compile(
    r"/(?:root|home|tmp|work|Users|usr|opt|content|private)\b|site-packages|\.venv"
)
BADGE = re.compile(r"\(https://colab\.research\.google\.com/github/(\S+)/blob/main/(\S+)\)")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def python(cell: dict) -> str:
    """A cell's source without IPython's own lines."""
    return re.sub(r"^( *)[%!].*$", r"\1pass", source(cell), flags=re.M)


def texts(cell: dict) -> list[tuple[str, str]]:
    """A cell's outputs as (kind, text), without pictures."""
    out: list[tuple[str, str]] = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            found = [(output["name"], output["text"])]
        elif output["output_type"] == "error":
            found = [("error", output["ename"])]
        else:
            found = [(k, v) for k, v in output["data"].items() if k.startswith("text/")]
        out += [(kind, "".join(text)) for kind, text in found]
    return out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stored(path):
    cells = code_cells(read(path))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) > len(cells) / 2
    for cell in cells:
        for kind, text in texts(cell):
            assert kind != "error", source(cell)
            assert not (found := MACHINE.search(text)), (source(cell), found)


def imported(text: str) -> set[tuple[str, str]]:
    """What a program imports, as (module, name)."""
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
    return {(node.module or "", alias.name) for node in nodes for alias in node.names}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_names_are_public(path):
    """Names in a package's `__all__`, and modules that have one or that a page imports too."""
    research, scaling = (DOCS / f"{name}.md" for name in ("research", "scaling"))
    programs = [b for page in (research, scaling) for b in PYTHON.findall(page.read_text())]
    shown = {name for program in programs for name in imported(program)}
    modules = {}  # what a name of the notebook stands for, where that is a part of leapjax
    for cell in code_cells(read(path)):
        tree = ast.parse(python(cell))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in (a.name for a in node.names if a.name.startswith("leapjax")):
                    assert alias == "leapjax", alias
                    modules[alias] = importlib.import_module(alias)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("leapjax"):
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    if name in getattr(module, "__all__", ()):
                        continue
                    modules[name] = part = importlib.import_module(f"{node.module}.{name}")
                    assert (node.module, name) in shown or part.__all__, part
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if module := modules.get(node.value.id):
                    public = getattr(module, "__all__", None) or vars(module)
                    assert node.attr in public and node.attr[0] != "_", ast.unparse(node)


def test_badges_and_installation_agree():
    cells = [read(path)["cells"] for path in NOTEBOOKS]
    found = [BADGE.findall(source(first)) for first, *_ in cells]
    assert [[place for _, place in each] for each in found] == [
        [f"docs/notebooks/{path.name}"] for path in NOTEBOOKS
    ]
    [[repository]] = {tuple(name for name, _ in each) for each in found}
    [install] = {source(next(c for c in each if c["cell_type"] == "code")) for each in cells}
    assert f"git+https://github.com/{repository}" in install


def executed(path: Path, folder: Path) -> dict:
    """The notebook as it is after a run in a folder."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "MPLBACKEND")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=1200,  # seconds of a cell
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=env)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        streams = [o for o in cell.outputs if o.output_type == "stream"]
        rest = [o for o in cell.outputs if o.output_type != "stream"]
        printed = [o for o in streams if o.name == "stdout"]
        for more in printed[1:]:  # the kernel cuts a stream where it likes
            printed[0].text += more.text
        cell.outputs = printed[:1] + rest
    notebook.metadata["language_info"] = {"name": "python"}  # no version
    return json.loads(nbformat.writes(notebook))


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_run_prints_what_is_stored(path, tmp_path, request):
    now = executed(path, tmp_path)
    if request.config.getoption("--write-notebooks"):
        path.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n")
    for cell, again in zip(code_cells(read(path)), code_cells(now), strict=True):
        if VARIES not in cell["metadata"].get("tags", ()):
            assert texts(cell) == texts(again), source(cell)
