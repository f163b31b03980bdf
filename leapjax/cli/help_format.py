"""How `--help` is laid out: prose is filled to the terminal, examples keep their lines."""

import argparse
import re
import shutil
import textwrap

WIDEST = 100  # longer lines are hard to read


class HelpFormatter(argparse.HelpFormatter):
    """Fills descriptions and epilogs without taking their structure away.

    A paragraph of unindented lines is prose and is filled. An indented line stays a line;
    one that is too long is continued: a comment behind another `#`, a command behind a
    backslash, a table's second column under itself.
    """

    def __init__(self, prog: str, **kwargs):
        kwargs.setdefault("width", min(shutil.get_terminal_size().columns, WIDEST + 2) - 2)
        super().__init__(prog, **kwargs)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = []
        for paragraph in text.strip("\n").split("\n\n"):
            prose: list[str] = []
            given = paragraph.split("\n")
            for line, following in zip(given, [*given[1:], ""], strict=True):
                if line[:1].isspace():
                    lines += _filled(prose, width, indent)
                    lines += _continued(indent + line, width)
                    prose = []
                elif line.endswith(":") and following[:1].isspace():
                    lines += [*_filled(prose, width, indent), indent + line]  # a heading
                    prose = []
                else:
                    prose.append(line)
            lines += [*_filled(prose, width, indent), ""]
        return "\n".join(lines).rstrip("\n") + "\n"


def _filled(prose: list[str], width: int, indent: str) -> list[str]:
    whole = " ".join(prose)
    return textwrap.wrap(
        whole,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _continued(line: str, width: int) -> list[str]:
    """The lines that an indented line becomes."""
    if len(line) <= width:
        return [line]
    margin = line[: len(line) - len(line.lstrip())]
    table = re.match(r"\s+\S+(?: \S+)*\s{2,}(?=\S)", line)
    if not table and not line.lstrip().startswith("#"):
        return _command(line, width, margin + "    ")
    behind = " " * table.end() if table else f"{margin}# "
    return textwrap.wrap(
        line, width, subsequent_indent=behind, break_long_words=False, break_on_hyphens=False
    )


def _command(line: str, width: int, margin: str) -> list[str]:
    """A shell command on several lines, broken before its options only."""
    lines, rest = [], re.split(r" (?=--?\w|<|\|)", line)
    now = rest.pop(0)
    for part in rest:
        if len(now) + len(part) + 3 > width:
            lines.append(f"{now} \\")
            now = margin + part
        else:
            now = f"{now} {part}"
    return [*lines, now]
