"""Files of results; each is written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.errors import UserError


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a file under another name, then give it its own.

    Args:
      path: the file; a link is written through.
      fill: takes the path to write to.

    Raises:
      UserError: it can't be written.
    """
    path = path.resolve()
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        fill(part)
        os.replace(part, path)
    except OSError as e:
        raise UserError(f"{path}: can't be written ({e.strerror or e})") from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8; raises as `write` does."""
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON-ready value; raises as `write` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; an interval becomes two columns, `NAME_low` and `NAME_high`.

    Args:
      path: the file.
      rows: column -> value; columns are those of all rows, in order of appearance.
    """
    flat = []
    for row in rows:
        line = {}
        for name, value in row.items():
            if isinstance(value, list | tuple):
                line[f"{name}_low"], line[f"{name}_high"] = value
            else:
                line[name] = value
        flat.append(line)
    stream = io.StringIO()
    columns = list(dict.fromkeys(name for line in flat for name in line))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(path, stream.getvalue())


def prepare(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Make the folder of a study; refuse, before any work, to replace an earlier run's files.

    Args:
      folder: of the results.
      names: files that will be written.
      overwrite: they may be replaced.

    Raises:
      UserError: one of them exists, or the folder can't be made.
    """
    there = [folder / name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]}: is there already; add --overwrite to replace it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output {folder}: can't be made ({e.strerror or e})") from e
