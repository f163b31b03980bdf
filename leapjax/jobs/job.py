"""A job into a folder: resumable, exact, in constant memory.

`run` decodes an input into shards (leapjax.jobs.shards). What the outputs depend on
stands in the journal's header; a resumed job must agree with it, skips the input lines
that are behind it, and goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.jobs import journal as journals
from leapjax.jobs import storage
from leapjax.jobs.journal import Journal
from leapjax.jobs.lock import locked
from leapjax.jobs.loop import Loop, Progress, Stopped
from leapjax.jobs.shards import SUMMARY, Shards, clashes, holds_output, summary_bytes
from leapjax.jobs.source import Input, InputInfo, Item
from leapjax.jobs.storage import Folder
from leapjax.jobs.summary import Summary, counts_of
from leapjax.records import Intake, parse_line, to_line, to_record

SHARD_SIZE = 1000

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
# What a resumed job must agree in, besides input and options; header key -> how it is called.
_SETTINGS = {
    "weights": "the model's weights",
    "config": "the model's config.json",
    "tokenizer": "the model's tokenizer or chat template",
    "dtype": "dtype",
    "quantization": "quantization",
    "num_samples": "num_samples",
    "details": "details",
    "raw": "raw",
    "stop": "stop",
    "limit": "limit",
}


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """What a job is to do.

    Attributes:
      input: JSONL: a path, a URL, `-` for stdin; `.gz` is unpacked.
      output: a folder: a path or a URL.
      options: decode options.
      resume: go on where the job in the folder was interrupted, if there is one.
      overwrite: start anew, over a job that is there.
      max_errors: bad records that are set aside instead of ending the job.
      num_samples: answers per record; None is one, not numbered.
      details: records say why and how surely each position was committed.
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
    raw: bool = False
    stop: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int | None = None
    shard_size: int | None = None
    save_seconds: float = 30.0


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


@contextlib.contextmanager
def _show_nothing(total: int | None) -> Iterator[Callable[[Progress], None]]:
    yield lambda progress: None


def check(spec: JobSpec) -> None:
    """Refuse what can be seen to be wrong before a model is loaded.

    Args:
      spec: the job.

    Raises:
      UserError: no such input, or an output that is in the way.
    """
    Input(spec.input)
    with _one_line(spec):
        _journal_to_resume(storage.folder(spec.output), spec)


def run(
    lm,
    spec: JobSpec,
    *,
    show: Callable[[int | None], contextlib.AbstractContextManager] = _show_nothing,
    stop: Callable[[], int | None] = lambda: None,
) -> Result:
    """Decode an input into a folder, from the start or from where it was interrupted.

    Args:
      lm: the model, a `leapjax.LM`.
      spec: the job.
      show: given the number of records, if it is known, a context that yields what takes
        the progress (`leapjax.jobs.display.shown`).
      stop: a signal's number once the job shall stop, else None.

    Returns:
      The counts.

    Raises:
      UserError: see docs/jobs.md; the folder can be resumed unless it was refused.
      Stopped: it was asked to stop; the folder can be resumed.
    """
    source, folder = Input(spec.input), storage.folder(spec.output)
    with _one_line(spec):
        _journal_to_resume(folder, spec)  # before the folder is touched
        folder.create()
        with locked(folder):
            # Again, now that nobody else writes there.
            journal = _journal_to_resume(folder, spec)
            info = source.scan()
            header = describe(lm, spec, info)
            if journal is None:
                journal = Journal.create(folder, header)
            elif changes := differences(journal.header, header):
                raise UserError(
                    f"output {spec.output}: can't be resumed, because {' and '.join(changes)}; "
                    "use what it was begun with, or start anew with --overwrite"
                )
            if journal.errors > spec.max_errors:
                raise UserError(
                    f"output {spec.output}: bad records set aside so far: {journal.errors}, but "
                    f"--max-errors is {spec.max_errors}; resume with at least that many"
                )
            if journal.done:
                return _ended(folder, journal, None)
            shards = Shards(
                folder,
                journal,
                shard_size=spec.shard_size or journal.header["shard_size"],
                save_seconds=spec.save_seconds,
            )
            try:
                with show(_total(spec, info)) as seen:
                    summary = _decode(lm, spec, source, info, journal, shards, seen, stop)
            except OSError:
                raise
            except Exception:
                with contextlib.suppress(OSError):
                    shards.save()
                raise
            finally:
                shards.close()
            return _ended(folder, journal, summary)


def describe(lm, spec: JobSpec, info: InputInfo) -> dict[str, Any]:
    """The journal's header: everything that the outputs depend on.

    Args:
      lm: the model.
      spec: the job.
      info: the input.
    """
    config = json.dumps(dataclasses.asdict(lm.config), sort_keys=True)
    return {
        "input": dataclasses.asdict(info),
        "weights": lm.model_hash,
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "tokenizer": _tokenizer_hash(lm.path),
        "dtype": lm.dtype,
        "quantization": lm.quantization,
        "options": spec.options.to_dict(),
        "num_samples": spec.num_samples,
        "details": spec.details,
        "raw": spec.raw,
        "stop": list(spec.stop),
        "limit": spec.limit,
        "batch_size": spec.batch_size,
        "shard_size": spec.shard_size or SHARD_SIZE,
        "versions": _versions(),
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What forbids that a job goes on, in words; empty if nothing does.

    Args:
      old: header of the interrupted job.
      new: header of the one that would go on.
    """
    found = []
    before, now = old["input"], new["input"]
    # A stream has no hash; its lines are compared as they are skipped.
    if None not in (before["sha256"], now["sha256"]) and before["sha256"] != now["sha256"]:
        found.append(f"the input changed ({before['bytes']} bytes before, {now['bytes']} now)")
    for key, name in _SETTINGS.items():
        if old.get(key) != new[key]:
            if name.startswith("the "):
                found.append(f"{name} changed")
            else:
                found.append(f"{name} was {_shown(old.get(key))}, now {_shown(new[key])}")
    for name in {**old["options"], **new["options"]}:
        was, now_is = old["options"].get(name), new["options"].get(name)
        if was != now_is:
            found.append(f"{name} was {_shown(was)}, now {_shown(now_is)}")
    return found


class ShardSink:
    """Completions into shards.

    Args:
      shards: of the job's folder.
      eos_id: the model's eos token.
      details: see `to_record`.
    """

    def __init__(self, shards: Shards, eos_id: int, details: bool):
        self._shards, self._eos_id, self._details = shards, eos_id, details

    def write(self, completion) -> None:
        """Take the next completion."""
        row = to_line(to_record(completion, self._details)).encode()
        self._shards.write(row, counts_of(completion, self._eos_id))

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Take a bad record."""
        self._shards.keep_bad(to_line(record).encode())

    def settle(self, item: Item) -> None:
        """All of this record has come."""
        self._shards.settle(item.line, item.chain)


def _decode(lm, spec, source, info, journal, shards, seen, stop) -> Summary:
    intake = Intake(
        spec.options,
        lm.config,
        lm.codec,
        raw=spec.raw,
        stop=spec.stop,
        samples=spec.num_samples,
    )
    loop = Loop(
        lm,
        intake,
        ShardSink(shards, lm.config.eos_token_id, spec.details),
        max_errors=spec.max_errors,
        errors=journal.errors,
        records=journal.records,
        batch_size=spec.batch_size or journal.header["batch_size"],
        steady=True,
        seen=seen,
        stop=stop,
    )
    items: Iterable[Item] = itertools.islice(source.items(), spec.limit)
    if journal.last:
        items = _skip(items, journal.last, shards.bad_lines(), intake, source, stop)
    summary = loop.run(items)
    if spec.limit is None:
        source.check_unchanged(info)
    shards.finish()
    return summary


def _total(spec: JobSpec, info: InputInfo) -> int | None:
    """Records of the input as far as one can tell; blank lines count too."""
    return info.lines if info.lines is None else min(info.lines, spec.limit or info.lines)


def _skip(items: Iterable[Item], last, bad: set[int], intake: Intake, source: Input, stop):
    """The items behind `last`; of those before only the ids are taken in."""
    items = iter(items)
    for item in items:
        if item.line not in bad:
            intake.remember(parse_line(item.given, item.where), item.line)
        if item.line >= last.last_line:
            if (item.line, item.chain) == (last.last_line, last.chain):
                return items
            break
        if (number := stop()) is not None:
            raise Stopped(number)
    raise UserError(
        f"input {source.name}: is not the one that the job was begun with (its first "
        f"{last.last_line} lines differ); use that, or start anew with --overwrite"
    )


def _journal_to_resume(folder: Folder, spec: JobSpec) -> Journal | None:
    """The journal of the job that is to go on, None to begin one.

    Raises:
      UserError: the flags don't allow either.
    """
    where = f"output {spec.output}"
    if spec.resume and spec.overwrite:
        raise UserError("--resume and --overwrite are both given; choose one")
    try:
        names = list(folder.sizes())
    except NotADirectoryError:
        raise UserError(f"{where}: is a file; name a folder, or a file ending in .jsonl") from None
    has_journal = journals.NAME in names
    if not has_journal and (others := clashes(names)):
        raise UserError(f"{where}: holds other files ({others[0]}); choose a new or empty folder")
    if spec.overwrite or not (has_journal or holds_output(names)):
        return None
    if not spec.resume:
        raise UserError(
            f"{where}: is there already; add --resume to go on with it, or --overwrite to start "
            "anew"
        )
    if not has_journal:
        raise UserError(
            f"{where}: has shards but no journal, so it can't be resumed; restore the journal, or "
            "start anew with --overwrite"
        )
    return Journal.read(folder)


def _ended(folder: Folder, journal: Journal, ran: Summary | None) -> Result:
    """Write `summary.json`, unless an earlier run did; `ran` is what this one decoded."""
    totals, summary = journal.totals, ran or Summary()
    content = {
        **{{"rows": "answers"}.get(name, name): count for name, count in totals.items()},
        "tokens_per_step": _ratio(totals["tokens"], totals["steps"]),
        "shards": journal.shards,
        **{k: v for k, v in journal.header.items() if k not in ("format", "versions")},
        "versions": _versions(),
        "last_run": {
            "answers": summary.answers,
            "seconds": round(summary.seconds, 3),
            "tokens_per_second": _ratio(summary.tokens, summary.seconds),
        },
    }
    if ran is not None or folder.size(SUMMARY) is None:
        folder.write(SUMMARY, summary_bytes(content))
    return Result(summary, content, ran is not None)


def _ratio(a: float, b: float) -> float | None:
    return round(a / b, 4) if b else None


def _shown(value: Any) -> str:
    return "off" if value is None else json.dumps(value, ensure_ascii=False)


@functools.cache
def _versions() -> dict[str, str]:
    import importlib.metadata

    import leapjax

    found = {"leapjax": leapjax.__version__, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "tokenizers"):
        found[name] = importlib.metadata.version(name)
    return found


def _tokenizer_hash(path: str | Path | None) -> str | None:
    """A hash of a model folder's tokenizer files; None without a folder."""
    if path is None:
        return None
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        file = Path(path) / name
        if file.is_file():
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _one_line(spec: JobSpec) -> Iterator[None]:
    """Failures of the output folder as one line."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"output {spec.output}: can't be written ({e.strerror or e}); what is complete is "
            "kept: mend that and run the same command with --resume"
        ) from e
