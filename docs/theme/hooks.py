"""What the site does to pages that are also read in the repository.

Pages link to files outside docs/ (`../CONTRIBUTING.md`, `../configs/dream-7b.yaml`). The site has
no repository beside it, so each such file becomes a page of its own, and the links lead there. The
page of the commands is made from their parsers. Drawings are inlined.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LOG = logging.getLogger("mkdocs.hooks")
FENCE = re.compile(r"^([ ]*```).*?^\1", re.M | re.S)
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
DRAWING = re.compile(r'<p><img alt="([^"]*)" src="[^"]*drawings/(\w+)\.svg" ?/?></p>')
COMMANDS_HERE = "<!-- commands: the site puts every parser's options here -->"
TOP = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")  # always there: the navigation names them


def page_of(path: str) -> str:
    """The page of the site that shows a file of the repository.

    >>> page_of("docs/jobs.md"), page_of("README.md"), page_of("configs/greedy.yaml")
    ('jobs.md', 'index.md', 'source/configs/greedy.yaml.md')
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    return path if path.endswith(".md") else f"source/{path}.md"


def origin_of(page: str) -> str:
    """The file of the repository that a page shows; the inverse of `page_of`."""
    for path in (f"docs/{page}", page, page.removeprefix("source/").removesuffix(".md")):
        if (ROOT / path).is_file():
            return path
    return f"docs/{page}"


def outside(text: str, change):
    """The text with `change` applied outside its fences."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def target_of(link: str, origin: str) -> tuple[str, str] | None:
    """The file that a relative link names, from the repository's root, and its anchor."""
    name, _, anchor = link.partition("#")
    if not name or ":" in name or name.startswith("/"):
        return None
    return os.path.normpath(os.path.join(os.path.dirname(origin), name)), anchor


def links(text: str) -> list[str]:
    """All link targets of a page, but not those in its fences."""
    found: list[str] = []
    outside(text, lambda part: found.extend(t for _, t, _ in LINK.findall(part)) or part)
    return found


def shown(path: str) -> str:
    """A file of the repository as Markdown: itself, or its lines in a fence."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    kind = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(PurePosixPath(path).suffix, "")
    return f"# `{path}`\n\n````{kind}\n{text.rstrip()}\n````\n"


def on_files(files, config):
    """Add a page for each file outside docs/ that a page links to, and for what those link to."""
    todo = [(page.content_string, f"docs/{page.src_uri}") for page in files.documentation_pages()]
    todo = [(text, origin) for text, origin in todo if origin.endswith(".md")]
    wanted = list(TOP)
    while todo or wanted:
        for text, origin in todo:
            targets = [target_of(link, origin) for link in links(text)]
            wanted += [t[0] for t in targets if t and not t[0].startswith("docs/")]
        todo = []
        for path in dict.fromkeys(wanted):
            page = page_of(path)
            if not (ROOT / path).is_file() or files.get_file_from_path(page):
                continue
            files.append(File.generated(config, page, content=shown(path)))
            if path.endswith(".md"):
                todo.append((shown(path), path))
        wanted = []
    files.append(File.generated(config, "llms.txt", content=_map(files)))
    return files


def _map(files) -> str:
    """llms.txt, whose links lead to files of the repository, with links to pages of the site."""

    def moved(match: re.Match) -> str:
        page = files.get_file_from_path(page_of(match[2]))
        if page is None:
            LOG.warning("llms.txt: no page for %s", match[2])
            return match.group()
        return f"{match[1]}{page.url}{match[3]}"

    return LINK.sub(moved, (ROOT / "llms.txt").read_text())


def commands() -> str:
    """Every command as a chapter: what it does, its options by group, its examples."""
    from leapjax.cli.main import COMMANDS

    lines = []
    for name in COMMANDS:
        module = importlib.import_module(f"leapjax.cli.{name}")
        parser = argparse.ArgumentParser(prog=f"leapjax {name}")
        module.add_arguments(parser)
        lines += [f"## leapjax {name}", "", module.DESCRIPTION, ""]
        for group in parser._action_groups:
            shown = [a for a in group._group_actions if a.help is not argparse.SUPPRESS]
            if shown:
                lines += [f"| {group.title} | |", "|---|---|"]
                lines += [_option(action, parser) for action in shown]
                lines += ["", *([group.description, ""] if group.description else [])]
        if examples := getattr(module, "EPILOG", ""):
            lines += ["```text", examples.rstrip(), "```", ""]
    return "\n".join(lines)


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """An option as a line of a table."""
    value = ""
    if action.nargs != 0:
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
        value = action.metavar or choices or action.dest.upper()
        value = " ".join(value) if isinstance(value, tuple) else str(value)
    flag = ", ".join(action.option_strings)
    words = parser._get_formatter()._expand_help(action) if action.help else ""
    cell = f"`{f'{flag} {value}'.strip()}`"
    return "| " + " | ".join(text.replace("|", "\\|") for text in (cell, words)) + " |"


def on_page_markdown(markdown, page, config, files):
    """Turn links into links between pages, check addresses, and part tables from comments."""
    origin = origin_of(page.file.src_uri)
    here = os.path.dirname(page.file.src_uri)

    def moved(match: re.Match) -> str:
        before, link, after = match.groups()
        if "://" in link:
            parts = urlsplit(link)
            if parts.scheme not in ("http", "https") or "." not in parts.netloc:
                LOG.warning("%s: %s is no web address", origin, link)
        target = target_of(link, origin)
        if target is None:
            return match.group()
        path, anchor = target
        name = os.path.relpath(page_of(path), here or ".")
        return f"{before}{name}{'#' if anchor else ''}{anchor}{after}"

    def change(text: str) -> str:
        text = re.sub(r"(-->\n)(?=\|)", r"\1\n", text)  # a table is a paragraph of its own
        text = re.sub(r"(\|\n)(?=<!--)", r"\1\n", text)
        return LINK.sub(moved, text)

    if COMMANDS_HERE in markdown:
        markdown = markdown.replace(COMMANDS_HERE, commands())
    return outside(markdown, change)


def on_page_content(html, page, config, files):
    """Inline the drawings, so that they follow the light and dark scheme; no picture from afar."""

    def inlined(match: re.Match) -> str:
        words, name = match.groups()
        svg = (ROOT / "docs" / "drawings" / f"{name}.svg").read_text()
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)
        return f'<figure class="drawing">{svg}</figure>'

    html = re.sub(
        r'<img alt="([^"]+)" src="https?://[^"]+" ?/?>', r"\1", html
    )  # a badge: its words
    return DRAWING.sub(inlined, html)
