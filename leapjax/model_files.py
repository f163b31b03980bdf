"""The files of a model's folder beside its weights: their names, and how they are read safely.

A model's folder comes from anywhere, so every file goes through `inside` before it is read.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapjax.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Everything that decides which ids a text becomes, and the chat template."""

SIDE_FILES = ("config.json", "generation_config.json", "decode.yaml", *TOKENIZER_FILES)
"""What a converted or fine-tuned model keeps besides the weights: data only, never code."""

_MAX_JSON = 64 << 20


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, made sure to be a regular file that lies inside the folder.

    A link may only lead where the hub's own cache keeps its files
    (`snapshots/REVISION/NAME -> ../../blobs/HASH`).

    `name`: of the file, relative to the folder. Raises UserError: missing, not a regular file, or a
    name or link that leads elsewhere.
    """
    path = folder / name
    home = folder.resolve()
    try:
        real = path.resolve(strict=True)
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError, ValueError) as e:
        raise UserError(f"{folder}: {name} is missing or a broken link; fetch it") from e
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise UserError(
            f"{folder}: {name} is a link that leads outside the folder; put the file itself there"
        )
    if not regular:
        raise UserError(f"{folder}: {name} is not a regular file")
    return path


def side_files(folder: Path) -> dict[str, Path]:
    """The config and tokenizer files that a folder has, by name."""
    return {n: inside(folder, n) for n in SIDE_FILES if os.path.lexists(folder / n)}


def read_json(folder: Path, name: str) -> dict:
    """A JSON object from a file of the folder."""
    file = folder / name
    if not os.path.lexists(file):
        raise UserError(f"{folder}: {name} is missing; is this a model's folder?")
    try:
        file = inside(folder, name)
        if file.stat().st_size > _MAX_JSON:
            raise UserError(f"{file}: too large to be genuine")
        value = json.loads(file.read_text("utf-8"))
    except OSError as e:
        raise UserError(f"{file}: can't be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file}: is not valid JSON; fetch or convert it again") from e
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object")
    return value


def to_json(value: Mapping[str, Any]) -> bytes:
    """A JSON file's content, as the hub's own libraries write it."""
    return (json.dumps(value, indent=2) + "\n").encode()


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a folder is (meant to be) a leapjax checkpoint rather than a hub folder.

    Its content decides: a manifest that says `"format": "leapjax"`. Where the manifest says
    nothing (missing, damaged, another program's), weights as only leapjax writes them do.
    """
    folder = Path(path)
    try:
        manifest = read_json(folder, "manifest.json")
    except UserError:
        manifest = {}
    if "format" in manifest:
        return manifest["format"] == "leapjax"
    hub = ("*.safetensors", "pytorch_model*.bin")
    return (folder / "params" / "_METADATA").is_file() and not any(
        any(folder.glob(pattern)) for pattern in hub
    )


def tokenizer_hash(path: str | os.PathLike | None) -> str | None:
    """A hash of a model folder's tokenizer files; None without a folder."""
    if path is None:
        return None
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        file = Path(path) / name
        if file.is_file():
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()
