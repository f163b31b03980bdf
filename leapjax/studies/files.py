"""Files of results; each is written whole or not at all."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.errors import UserError
from leapjax.outputs import Whole


def write(path: Path, content: Any) -> None:
    """Write a file; a link is written through.

    `content` is a text or bytes, or by the file's suffix a JSON-ready value (`.json`), a
    matplotlib figure (`.png`), or rows of column -> value (`.csv`; an interval becomes `NAME_low`
    and `NAME_high`).
    """
    if not isinstance(content, str | bytes):
        content = {".json": json_text, ".csv": _csv, ".png": _png}[path.suffix](content)
    data = content.encode() if isinstance(content, str) else content
    try:
        file = Whole(str(path))
        try:
            file.write(data)
            file.publish()
        finally:
            file.discard()
    except OSError as e:
        raise UserError(f"{path}: can't be written ({e.strerror or e})") from e


def write_all(folder: Path, contents: Mapping[str, Any]) -> list[str]:
    """Write several files; names are returned, those without content (None) left out."""
    names = [name for name, content in contents.items() if content is not None]
    for name in names:
        write(folder / name, contents[name])
    return names


def json_text(value: Any) -> str:
    """A JSON-ready value as a file's text, for `write` where the suffix does not say so."""
    return json.dumps(value, indent=1) + "\n"


def _png(fig) -> bytes:
    out = io.BytesIO()
    fig.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    flat: list[dict[str, Any]] = []
    for row in rows:
        flat.append({})
        for name, value in row.items():
            pair = isinstance(value, list | tuple)
            names = (f"{name}_low", f"{name}_high") if pair else (name,)
            flat[-1] |= zip(names, value if pair else (value,), strict=True)
    stream = io.StringIO()
    columns = list(dict.fromkeys(name for line in flat for name in line))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def prepare(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Make the folder of a study; refuse, before any work, to replace an earlier run's files.

    `names` are the files that will be written.
    """
    there = [folder / name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]}: is there already; add --overwrite to replace it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output {folder}: can't be made ({e.strerror or e})") from e
