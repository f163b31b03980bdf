"""What a folder job is to do, and how it ended."""

from __future__ import annotations

import dataclasses
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.jobs.source import InputInfo
from leapjax.jobs.summary import Summary


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """What a job is to do.

    Attributes:
      input: JSONL: a path, a URL, `-` for stdin; gzip, bzip2 and xz are unpacked.
      output: a folder: a path or a URL.
      options: decode options.
      resume: go on where the job in the folder was interrupted, if there is one.
      overwrite: start anew, over a job that is there.
      max_errors: bad records that are set aside instead of ending the job.
      num_samples: answers per record; None is one, not numbered.
      details: records say why and how surely each position was committed.
      fields: records hold only these keys (`leapjax.records.check_fields`); None is all.
      raw: no chat template, control tokens are parsed.
      stop: strings that end an answer.
      limit: only so many records of the input.
      batch_size: rows decoded at once; None: as in the interrupted job, or chosen by the
        engine.
      shard_size: records per shard; None: as in the interrupted job, or 1000.
      save_seconds: how much finished work a kill may cost.
    """

    input: str
    output: str
    options: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    resume: bool = False
    overwrite: bool = False
    max_errors: int = 0
    num_samples: int | None = None
    details: bool = False
    fields: tuple[str, ...] | None = None
    raw: bool = False
    stop: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int | None = None
    shard_size: int | None = None
    save_seconds: float = 30.0

    def records(self, info: InputInfo) -> int | None:
        """Records of the input as far as one can tell; blank lines count too."""
        return info.lines if info.lines is None else min(info.lines, self.limit or info.lines)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes:
      summary: counts of this run.
      content: what `summary.json` says, over all runs of the job.
      ran: False where the job had ended before.
    """

    summary: Summary
    content: dict[str, Any]
    ran: bool
