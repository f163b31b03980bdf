"""The settings of a folder job, and its result."""

import dataclasses
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.jobs.summary import Summary


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """The settings of a folder job.

    Attributes:
      input: JSONL file: a path, a URL, or `-` for stdin; gzip, bzip2 and xz are decompressed.
      output: folder: a path or a URL.
      options: decode options.
      resume: continue the job in the folder, if there is one.
      overwrite: replace the job in the folder and start over.
      max_errors: number of bad records to set aside; one more ends the job.
      num_samples: answers per record; None means one, without a number.
      details: records say why, and with what confidence, each position was committed.
      fields: keys of the records (`leapjax.records.check_fields`); None is all.
      raw: don't apply the chat template; control tokens are parsed.
      stop: strings that end an answer.
      limit: number of records to read; None is all.
      batch_size: rows decoded at once; None: as in the interrupted job, or the engine's choice.
      share_prefix: see `LM.stream`; a resumed job may change it.
      shard_size: records per shard; None is 1000. A resumed job keeps its size.
      save_seconds: time between two saves, and so the most finished work that a kill can lose.
      chip_hour: price of a chip-hour, for `summary.json`.
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
      summary: counts of this process's run.
      content: content of `summary.json`, over all runs and processes of the job.
      ran: False if the job had already ended.
    """

    summary: Summary
    content: dict[str, Any]
    ran: bool
