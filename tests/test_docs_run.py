"""The pages' commands and Python blocks run as they stand, or a mark says what they need.

A mark is a comment in the line before a block, which readers don't see:

    <!-- needs: network -->           not run here; the words are keys of NEEDS
    <!-- shorter: A -> B; C -> D -->  run with B in place of A, and D in place of C
    <!-- file: NAME -->               a file that the page's commands find

Commands run in a folder of stand-ins: wherever a page names a checkpoint, prompts or a hub id, the
small model in the package and a few word problems take their place.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from leapjax import chains, converters, embedded_path, tasks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^ *<!-- (needs|shorter|file): (.*?) -->\n)?^( *)```(\w*)\n(.*?)^\3```$", re.M | re.S
)
KINDS = ("sh", "python", "text", "yaml", "json")
NEEDS = {
    "a clone": "makes environments and runs the tests: .ci/run does so",
    "a cluster": "several hosts, or their scheduler",
    "a policy": "a policy that the reader writes",
    "a store": "an object store",
    "an accelerator": "a GPU or a TPU",
    "an hour": "minutes of processor time, up to hours",
    "libtpu": "the TPU compiler",
    "network": "a package index or the hub",
    "Ray": "Ray, and devices for its actors",
    "weights": "released weights, or data sets that go with them",
}


class Block(NamedTuple):
    page: Path
    line: int
    mark: str  # needs, shorter, file or nothing
    value: str  # the mark's
    kind: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def needs(self) -> list[str]:
        return self.value.split(", ") if self.mark == "needs" else []

    @property
    def swaps(self) -> list[tuple[str, str]]:
        swaps = self.value.split("; ") if self.mark == "shorter" else []
        return [tuple(swap.split(" -> ")) for swap in swaps]

    @property
    def run(self) -> str:
        """What is run of it."""
        text = self.text
        for old, new in self.swaps:
            text = text.replace(old, new)
        return text


def blocks(page: Path) -> list[Block]:
    text, out = page.read_text(), []
    for found in BLOCK.finditer(text):
        mark, value, indent, kind, body = found.groups()
        body = re.sub(f"^{indent}", "", body, flags=re.M)
        out.append(
            Block(page, text[: found.start()].count("\n") + 1, mark or "", value, kind, body)
        )
    return out


BLOCKS = [block for page in PAGES for block in blocks(page)]


def test_every_block_says_what_it_is():
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.M)) for page in PAGES)
    assert fences == 2 * len(BLOCKS)  # none is overlooked
    for block in BLOCKS:
        assert block.kind in KINDS, f"{block}: a block is {', '.join(KINDS)}"
        if block.kind not in ("sh", "python"):
            assert "leapjax " not in block.text or not block.text.startswith("leapjax "), str(block)


def test_marks_say_something_true():
    """`pytest -s` lists them."""
    for block in (b for b in BLOCKS if b.mark):
        print(f"{block}: {block.mark}: {block.value}")
        assert block.kind in ("sh", "python") or block.mark == "file", str(block)
        assert set(block.needs) <= NEEDS.keys(), f"{block}: {block.value}"
        for old, _ in block.swaps:
            assert old in block.text, f"{block}: {old}"
    assert {need for block in BLOCKS for need in block.needs} == NEEDS.keys()


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A folder with all that pages take for granted."""
    folder = tmp_path_factory.mktemp("stand-ins")
    model, hub = embedded_path(), folder / "hub-folder"
    converters.to_hub(model, hub)
    snapshot = folder / "cache" / "models--GSAI-ML--LLaDA-8B-Instruct" / "snapshots" / ("0" * 40)
    shutil.copytree(hub, snapshot)
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / "main").write_text("0" * 40)
    for name in (
        "llada-8b",
        "checkpoints/llada-8b",
        "checkpoints/LLaDA-8B-Instruct",
        "PATH",
        "MODEL",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(hub if name.endswith("Instruct") else model)
    for name in ("configs", "scripts", "tests", "leapjax"):
        (folder / name).symlink_to(ROOT / name)
    chains.save(folder / "a-chain", chains.synthetic(6, 6, eigenvalue=0.9, seed=0))
    task = tasks.get("wordproblems")
    problems = task.problems("heldout", ("easy",), 8, 0)
    lines = [json.dumps(task.record(p)) + "\n" for p in problems]
    for name in ("prompts.jsonl", "calib.jsonl"):
        (folder / name).write_text("".join(lines))
    answers = [json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in problems]
    (folder / "test.jsonl").write_text("".join(answers))
    return folder


@pytest.fixture
def sandbox(stand_ins, tmp_path, monkeypatch):
    """A fresh folder like it, the current one."""
    shutil.copytree(stand_ins, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "here" / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )


def write_files(page: Path) -> None:
    for block in (b for b in blocks(page) if b.mark == "file"):
        Path(block.value).write_text(block.text)


SH = [block for block in BLOCKS if block.kind == "sh" and not block.needs]
PYTHON = [
    page
    for page in PAGES
    if any(b.kind == "python" and b.mark not in ("needs", "file") for b in blocks(page))
]


@pytest.mark.slow  # a process a command
@pytest.mark.parametrize("block", SH, ids=str)
def test_commands_run(block, sandbox):
    write_files(block.page)
    for line in block.run.replace("\\\n", " ").splitlines():
        if made := re.match(r"leapjax convert [^-\s]\S* (\S+)", line):
            Path(made[1]).unlink(missing_ok=True)  # the page makes it itself
        done = subprocess.run(
            ["bash", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, (line, done.stderr[-2000:])


@pytest.mark.slow  # compiles decodes
@pytest.mark.parametrize("page", PYTHON, ids=lambda p: p.stem)
def test_python_runs(page, sandbox):
    """The blocks of a page in their order, as one program."""
    write_files(page)
    lines = [""] * page.read_text().count("\n")  # numbered as those of the page
    for block in (
        b for b in blocks(page) if b.kind == "python" and b.mark not in ("needs", "file")
    ):
        for number, line in enumerate(block.run.splitlines(), block.line + 1):
            lines[number] = line
    Path("page.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "page.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
