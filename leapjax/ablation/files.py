"""Files of results, each there whole or not at all."""

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
      path: the file.
      fill: takes the path to write to.

    Raises:
      UserError: it can't be written.
    """
    path = path.resolve()  # a link is written through
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
    """Write a text in UTF-8.

    Args:
      path: the file.
      text: what it will hold.
    """
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON.

    Args:
      path: the file.
      value: JSON-ready.
    """
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
