"""Answers of one model to the same prompts under several settings, kept on disk.

The settings of a policy are numbers of rows, so the compiled program of the first serves all.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.evaluation.results import Results
from leapjax.evaluation.runner import row_settings
from leapjax.evaluation.settings import Row
from leapjax.lm import LM
from leapjax.records import Intake
from leapjax.types import Request


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
      text: of it.
      steps: over the whole canvas.
    """

    text: str
    steps: int


def requests_of(
    lm: LM, records: Sequence[dict], config: DecodeConfig, raw: bool = False, stop=()
) -> list[Request]:
    """Records as requests, in their order.

    Args:
      lm: the model.
      records: as in a JSONL file.
      config: whose canvas has to fit.
      raw: as in `LM.generate`.
      stop: as in `LM.generate`.

    Raises:
      UserError: a record is unusable, or an id comes twice.
    """
    intake = Intake(config, lm.config, lm.codec, raw=raw, stop=stop)
    return [r for n, record in enumerate(records, 1) for r in intake.requests(record, n)]


def key(request: Request) -> str:
    """A name of a prompt that stays the same from run to run."""
    what = repr((request.ids, request.infill, request.stop)).encode()
    return f"{request.id}-{hashlib.blake2b(what, digest_size=8).hexdigest()}"


class Answers:
    """Decodes the prompts under one setting after another.

    Args:
      lm: the model.
      requests: the prompts, in the order in which answers are returned.
      folder: where answers are kept, so that an interrupted run goes on; None is nowhere.
      batch_size: rows decoded at once.
      show: takes a name and the number of answers there are, as they come.
    """

    def __init__(
        self,
        lm: LM,
        requests: Sequence[Request],
        folder: Path | None,
        batch_size: int,
        show: Callable[[str, int], None] = lambda name, done: None,
    ):
        self.lm, self.requests, self.folder = lm, tuple(requests), folder
        self.batch_size, self.show = batch_size, show
        self._keys = [key(r) for r in self.requests]

    def under(self, config: DecodeConfig, name: str) -> Iterator[tuple[int, Answer]]:
        """Answers under a setting, those already kept first.

        Args:
          config: the setting.
          name: first part of the file's name.

        Yields:
          (index of the prompt, answer), each prompt once; ending early decodes no more.
        """
        made = row_settings(self.lm, Row(config.policy, config), self.batch_size)
        with Results(self.folder, name, made) as results:
            kept = [i for i, k in enumerate(self._keys) if k in results.answers]
            for done, index in enumerate(kept, 1):
                self.show(name, done)
                yield index, _answer(results.answers[self._keys[index]])
            todo = sorted(set(range(len(self._keys))) - set(kept))
            rows = [dataclasses.replace(self.requests[i], config=config) for i in todo]
            engine = self.lm.engine_for(len(rows), self.batch_size)
            for done, (place, c) in enumerate(engine.as_completed(rows), len(kept) + 1):
                index = todo[place]
                answer = {"id": self._keys[index], "text": c.text, "steps": c.steps}
                results.add(answer)
                self.show(name, done)
                yield index, _answer(answer)

    def all(self, config: DecodeConfig, name: str) -> list[Answer]:
        """The answers to every prompt under a setting, in the prompts' order."""
        found = dict(self.under(config, name))
        return [found[i] for i in range(len(self.requests))]


def _answer(kept: dict[str, Any]) -> Answer:
    return Answer(kept["text"], kept["steps"])
