"""What a benchmark found: shown on stdout, kept as JSON and as a section of a document."""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import jax

from leapjax.errors import UserError
from leapjax.studies.files import json_text, write

QUICK = "A quick run, to try the code: its numbers mean nothing."


class Report:
    """What one run of `leapjax benchmark` shows and keeps.

    `args.json` names a file for `found`, `args.write` a document for what is shown. `found` is
    JSON-ready: of the run and the machine at first, to be added to.
    """

    def __init__(self, args: argparse.Namespace, section: str = ""):
        self._json, self._document, self._section = args.json, args.write, section
        self._shown = ""
        self.found: dict[str, Any] = {
            "jax": jax.__version__,
            "device": str(jax.devices()[0].device_kind),
            "machine": platform.machine(),
            "threads": len(os.sched_getaffinity(0)),
            "arguments": vars(args),
            "models": {},
        }

    def show(self, text: str, end: str = "\n\n") -> None:
        """Print a part of the section."""
        self._shown += text + end
        print(text, end=end, flush=True)

    def save(self) -> None:
        """Write what there is so far, so that a run that is cut off leaves it."""
        if self._json:
            write(Path(self._json), json_text(self.found))
        if self._document and self._section:
            write_section(Path(self._document), self._section, self._shown)


def markers(name: str) -> tuple[str, str]:
    """The lines before and after a generated section."""
    return f"<!-- {name}: begin, written by the command below -->", f"<!-- {name}: end -->"


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between a section's markers; the rest stays byte for byte.

    `path`: a Markdown file; without markers they are added at its end; `name`: of the section;
    `text`: what goes between them. Raises UserError: the file can't be read or written, or its
    markers are not one pair.
    """
    begin, end = markers(name)
    path = path.resolve()  # a link is written through
    try:
        # Bytes, so that other line ends than ours survive.
        old = path.read_bytes().decode() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: can't be read: {e}") from e
    section = f"{begin}\n{text.strip()}\n{end}"
    counts = old.count(begin), old.count(end)
    if counts == (1, 1) and old.index(begin) < old.index(end):
        before, after = old[: old.index(begin)], old[old.index(end) + len(end) :]
    elif counts == (0, 0):
        gap = "" if not old else "\n" if old.endswith("\n") else "\n\n"
        before, after = old + gap, "\n"
    else:
        raise UserError(f"{path}: the markers of {name!r} are not one pair; restore or remove them")
    write(path, before + section + after)
