"""Answers kept on disk, one JSONL file a row, so that a rerun goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapjax.errors import UserError


class Results:
    """The answers of one row, by problem id; each is appended as soon as it is there.

    The file's name holds a hash of the settings, and its first line holds them, so other
    settings never meet these answers. A line that a kill cut short is dropped.

    Args:
      folder: where the files are, or None to keep the answers in memory.
      name: of the row, the first part of the file's name.
      settings: everything that an answer depends on, JSON-ready.
    """

    def __init__(self, folder: Path | None, name: str, settings: Mapping[str, Any]):
        self.answers: dict[str, dict[str, Any]] = {}
        self.path: Path | None = None
        self._stream = None
        if folder is None:
            return
        head = json.dumps({"settings": settings}, sort_keys=True).encode() + b"\n"
        digest = hashlib.sha256(head).hexdigest()[:10]
        self.path = folder / f"answers-{name}-{digest}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = head
            if self.path.is_file() and (text := self.path.read_bytes()).startswith(head):
                kept = text[: text.rfind(b"\n") + 1]
                for line in kept[len(head) :].splitlines():
                    answer = json.loads(line)
                    self.answers[answer["id"]] = answer
            self._stream = open(self.path, "r+b" if kept is not head else "wb")
            self._stream.truncate(len(kept) if kept is not head else 0)
            self._stream.seek(0, 2)
            if kept is head:
                self._stream.write(head)
                self._stream.flush()
        except OSError as e:
            raise UserError(f"{self.path}: can't be written ({e.strerror or e})") from e
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{self.path}: is damaged; delete it to start again") from e

    def __enter__(self) -> Results:
        """Go on."""
        return self

    def __exit__(self, *error) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def add(self, answer: dict[str, Any]) -> None:
        """Keep an answer.

        Args:
          answer: JSON-ready, with its problem's `id`.
        """
        self.answers[answer["id"]] = answer
        if self._stream is not None:
            try:
                self._stream.write(json.dumps(answer).encode() + b"\n")
                self._stream.flush()
            except OSError as e:
                raise UserError(f"{self.path}: can't be written ({e.strerror or e})") from e
