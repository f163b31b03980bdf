"""The settings of a folder job, and its result."""

import dataclasses
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.jobs.summary import Summary


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """The settings of a folder job.

    Attributes:
      input: JSONL file: a path, a URL, or `-` for stdin; gzip, bzip2 and xz are unpacked.
      output: folder: a path or a URL.
      options: decode options.
      resume: go on with the job in the folder, if there is one.
      overwrite: start anew, over the job in the folder.
      max_errors: the largest number of bad records that are set aside; one more ends the job.
      num_samples: answers per record; None is one, not numbered.
      details: records say why and how surely each position was committed.
      fields: keys of the records (`leapjax.records.check_fields`); None is all.
      raw: no chat template; control tokens are parsed.
      stop: strings that end an answer.
      limit: number of records to read; None is all.
      batch_size: rows decoded at once; None: as in the interrupted job, or the engine's choice.
      share_prefix: see `LM.stream`; a resumed job may have another.
      shard_size: records per shard; None is 1000. A job that goes on keeps the size that it has.
      save_seconds: time between two saves, and so the finished work that a kill can cost.
      chip_hour: price of a chip and hour, for `summary.json`.
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
    share_prefix: bool | str = "auto"
    shard_size: int | None = None
    save_seconds: float = 30.0
    chip_hour: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a job.

    Attributes:
      summary: counts of this run of this process.
      content: content of `summary.json`, over all runs and processes of the job.
      ran: False if the job had ended before.
    """

    summary: Summary
    content: dict[str, Any]
    ran: bool
