"""Answers kept on disk, so that an interrupted study continues where it was."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapjax.errors import UserError


class AnswerStore(contextlib.AbstractContextManager):
    """The answers of one run, by id; each is appended to a JSONL file as soon as it exists.

    The file's first line holds the settings: everything that must be equal for an answer to be
    taken up again. The file's name holds a hash of that line, so answers under other settings
    are never mixed with these. A line that a kill cut short is dropped.

    `settings` are everything that an answer depends on except the prompt, JSON-ready; `folder`
    None keeps the answers in memory.

    >>> with AnswerStore(None, "greedy", {}) as store:
    ...     store.add({"id": "a", "text": "4"})
    >>> store.answers["a"]["text"]
    '4'
    """

    def __init__(self, folder: Path | None, name: str, settings: Mapping[str, Any]):
        self.answers: dict[str, dict[str, Any]] = {}
        self.path: Path | None = None
        self._stream = None
        if folder is None:
            return
        head = json.dumps({"settings": settings}, sort_keys=True).encode() + b"\n"
        self.path = folder / f"answers-{name}-{hashlib.sha256(head).hexdigest()[:10]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = self.path.read_bytes() if self.path.is_file() else b""
            kept = kept[: kept.rfind(b"\n") + 1] if kept.startswith(head) else b""
            for line in kept[len(head) :].splitlines():
                answer = json.loads(line)
                self.answers[answer["id"]] = answer
            self._stream = open(self.path, "r+b" if kept else "wb")
            self._stream.truncate(len(kept))
            self._stream.seek(0, 2)
            if not kept:
                self._append(head)
        except OSError as e:
            raise UserError(f"{self.path}: can't be written ({e.strerror or e})") from e
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{self.path}: is damaged; delete it to start again") from e

    def __exit__(self, *error) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def add(self, answer: dict[str, Any]) -> None:
        """Keep an answer, JSON-ready, with its `id`."""
        self.answers[answer["id"]] = answer
        self._append(json.dumps(answer).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        if self._stream is not None:
            try:
                self._stream.write(line)
                self._stream.flush()
            except OSError as e:
                raise UserError(f"{self.path}: can't be written ({e.strerror or e})") from e
