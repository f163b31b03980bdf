"""Records: what comes in becomes a `Request`, what comes out a JSON object.

    JSONL line, str, messages, ids ─▶ record (dict) ─▶ Request ─▶ … ─▶ Completion ─▶ dict

Every entry point, from Python or the command line, goes through `to_request`, so that
what a record may hold is decided here only (docs/contract.md, Records).
"""

import dataclasses
import difflib
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from leapjax.config import DecodeConfig, check_keys, row_config
from leapjax.errors import UserError
from leapjax.idset import IdSet
from leapjax.jsonl import kind_of
from leapjax.models.config import ModelConfig
from leapjax.text import TextCodec
from leapjax.types import Completion, Request

PROMPT_KINDS = ("prompt", "messages", "prompt_ids", "infill", "infill_ids")
KEYS = ("id", *PROMPT_KINDS, "options", "stop")
OUTPUT_KEYS = (
    *("id", "text", "output_ids", "finish_reason", "steps", "full_passes", "nfe", "commit_step"),
    *("edits", "commit_kind", "commit_confidence", "sample", "metadata"),
)


def to_request(
    record: Any,
    *,
    line: int = 1,
    job: DecodeConfig,
    model: ModelConfig,
    codec: TextCodec | None,
    raw: bool = False,
    stop: Sequence[str] = (),
    sample: int | None = None,
    where: str | None = None,
) -> Request:
    """Check and tokenise one record.

    `record`: a record, or a prompt alone: a str, messages, token ids. A `Request` is checked and
    returned, its options complete. `line`: its line number, from 1: the id of a record without one;
    `job`: the job's options; the record's own go over them, and both are made complete for the
    model (`DecodeConfig.for_model`); `codec`: the model's codec, None if the checkpoint has no
    tokenizer; `raw`: a prompt's control tokens are parsed, and no template is applied; `stop`:
    strings that end the answer, unless the record has its own; `sample`: which of several samples
    this is, or None; `where`: what error messages begin with; default `record {line}`.
    """
    where = where or f"record {line}"
    try:
        if isinstance(record, Request):
            _check_ids(record.ids, "ids", model)
            config = record.config.for_model(model)
            _check_fit(len(record.ids), config, record.infill, model)
            return record if config is record.config else dataclasses.replace(record, config=config)
        return _request(_as_record(record), line, job, model, codec, raw, stop, sample)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e


class Intake:
    """Turns the records of one job into requests; no id may come twice.

    Keeps a hash of every id, not the records.

    `codec`: the model's codec, or None; `samples`: requests per record, numbered by `sample`; None
    is one, not numbered; `repeated`: numbers of the lines whose id came before
    (`leapjax.jobs.index`); None finds them out as the records come, all of them and in order.
    """

    def __init__(
        self,
        job: DecodeConfig,
        model: ModelConfig,
        codec: TextCodec | None,
        *,
        raw: bool = False,
        stop: Sequence[str] = (),
        samples: int | None = None,
        repeated: Container[int] | None = None,
    ):
        if samples is not None and samples < 1:
            raise UserError(f"num_samples is {samples}; expected at least 1")
        self.job, self.model, self.codec = job.for_model(model), model, codec
        self.raw, self.stop, self.samples = raw, _stops(stop), samples
        self._seen, self._repeated = IdSet(), repeated

    def requests(self, record: Any, line: int, where: str | None = None) -> list[Request]:
        """The requests of one record.

        `where`: what error messages begin with; default `record {line}`. Raises UserError: the
        record is unusable, or its id has come before.
        """
        where = where or f"record {line}"
        first = self._request(record, line, where)
        if self._came_before(first.id, line):
            raise UserError(
                f"{where}: id {first.id!r} occurs twice (a record without an id has its line "
                f"number as id); give every record an id of its own"
            )
        if self.samples is None:
            return [first]
        return [dataclasses.replace(first, sample=n) for n in range(self.samples)]

    def check(self, record: Any, line: int) -> None:
        """Raise `UserError` if a record is bad in itself."""
        self._request(record, line, "")

    def _request(self, record: Any, line: int, where: str) -> Request:
        return to_request(
            record,
            line=line,
            job=self.job,
            model=self.model,
            codec=self.codec,
            raw=self.raw,
            stop=self.stop,
            where=where,
        )

    def _came_before(self, own: Any, line: int) -> bool:
        if self._repeated is None:
            return not self._seen.add(own)
        return line in self._repeated


def check_fields(fields: Sequence[str] | None, details: bool) -> tuple[str, ...] | None:
    """Names of the keys that output records shall have, each once.

    `fields`: as somebody wrote them; None is all; `details`: asked for beside them, which says the
    same thing twice.
    """
    if fields is None:
        return None
    if details:
        raise UserError(
            "--details goes without --fields; name commit_kind, commit_confidence there"
        )
    check_keys(fields, "--fields", OUTPUT_KEYS, "field")
    return tuple(name for name in OUTPUT_KEYS if name in fields)


def to_record(
    completion: Completion, details: bool = False, fields: Sequence[str] | None = None
) -> dict[str, Any]:
    """The output record of a completion, keys in the contract's order.

    `details`: add why and how surely each position was committed; `fields`: only these keys, of
    `OUTPUT_KEYS`, as far as the record has them; None is all.
    """
    if fields is not None:
        record = to_record(completion, details=True)
        return {name: value for name, value in record.items() if name in fields}
    record = {
        "id": completion.id,
        "text": completion.text,
        "output_ids": completion.output_ids,
        "finish_reason": completion.finish_reason,
        "steps": completion.steps,
        "full_passes": completion.full_passes,
        "nfe": completion.nfe,
        "commit_step": completion.commit_step,
    }
    if completion.edits is not None:
        record["edits"] = completion.edits
    if details:
        record["commit_kind"] = completion.commit_kind
        record["commit_confidence"] = completion.commit_confidence
    if completion.sample is not None:
        record["sample"] = completion.sample
    if completion.metadata:
        record["metadata"] = completion.metadata
    return record


def _as_record(given: Any) -> Mapping[str, Any]:
    """A prompt alone becomes a record."""
    if isinstance(given, Mapping):
        return given
    if isinstance(given, str):
        return {"prompt": given}
    if isinstance(given, np.ndarray) or (isinstance(given, Sequence) and len(given) == 0):
        return {"prompt_ids": given}
    if isinstance(given, Sequence):
        return {"messages" if isinstance(given[0], Mapping) else "prompt_ids": given}
    raise UserError(f"expected a text, messages, token ids or a record, got {kind_of(given)}")


def _request(
    record: Mapping[str, Any],
    line: int,
    job: DecodeConfig,
    model: ModelConfig,
    codec: TextCodec | None,
    raw: bool,
    stop: Sequence[str],
    sample: int | None,
) -> Request:
    kind = _promptkind_of(record)
    own = record.get("options")
    # An options object that is null says nothing.
    config = job.for_model(model)
    config = config if own is None else _own_options(config, own)
    seed = config.seed if own and own.get("seed") is not None else None
    ids = _ids(record[kind], kind, model, codec, raw)
    infill = kind in ("infill", "infill_ids")
    if infill and model.mask_token_id not in ids:
        raise UserError(
            f"infill_ids holds no mask id ({model.mask_token_id}), so nothing is open; "
            f"put it where tokens are wanted"
        )
    _check_fit(len(ids), config, infill, model)
    given_stop = record.get("stop")
    return Request(
        id=record_id(record.get("id"), line),
        ids=tuple(ids),
        config=config,
        infill=infill,
        seed=seed,
        sample=sample,
        metadata={k: v for k, v in record.items() if k not in KEYS} or None,
        stop=_stops(stop if given_stop is None else given_stop),
        whole=kind == "infill",
    )


def _own_options(job: DecodeConfig, own: Any) -> DecodeConfig:
    where = "options"
    try:
        return row_config(job, own, where)
    except UserError as e:
        raise UserError(str(e).replace(f"{where}: options", "options", 1)) from e


def _promptkind_of(record: Mapping[str, Any]) -> str:
    kinds = [k for k in PROMPT_KINDS if record.get(k) is not None]
    if len(kinds) > 1:
        raise UserError(f"has both {kinds[0]} and {kinds[1]}; give one of them")
    if kinds:
        return kinds[0]
    for name in record:
        near = difflib.get_close_matches(str(name), PROMPT_KINDS, n=1, cutoff=0.7)
        if near and name not in KEYS:
            raise UserError(f"has no prompt; did you mean {near[0]!r} instead of {name!r}?")
    raise UserError(f"has no prompt; give one of {', '.join(PROMPT_KINDS)}")


def record_id(given: Any, line: int) -> str | int:
    """The id of a record, given its `id` and line number; `UserError` if it can't be one."""
    if given is None:
        return line
    if isinstance(given, np.integer):
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise UserError(f"id should be a text or a whole number, got {kind_of(given)}")
    if isinstance(given, str):
        _check_unicode(given, "id")
    elif given.bit_length() > 1000:  # Python writes no number of any length
        raise UserError("id is a number of more than 300 digits; give a shorter one, or a text")
    return given


def _ids(
    given: Any, kind: str, model: ModelConfig, codec: TextCodec | None, raw: bool
) -> list[int]:
    """Token ids of a prompt of whatever kind."""
    if kind in ("prompt_ids", "infill_ids"):
        ids = _whole_numbers(given, kind)
        if not ids:
            raise UserError(f"{kind} is empty; give at least one id")
        _check_ids(ids, kind, model)
        return ids
    if codec is None:
        raise UserError(f"{kind} needs a tokenizer and the checkpoint has none; give prompt_ids")
    if kind in ("prompt", "infill"):
        if not isinstance(given, str):
            raise UserError(f"{kind} should be a text, got {kind_of(given)}")
        if not given:
            raise UserError(f"{kind} is empty; give some text")
        encode = codec.encode_prompt if kind == "prompt" else codec.encode_infill
        ids = encode(given, raw)
    else:
        ids = codec.encode_chat(given, codec.template_options)
    _check_ids(ids, kind, model)
    return ids


def _whole_numbers(given: Any, kind: str) -> list[int]:
    if isinstance(given, np.ndarray):
        if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
            raise UserError(f"{kind} should be a list of whole numbers, got shape {given.shape}")
        return given.tolist()
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise UserError(f"{kind} should be a list of whole numbers, got {kind_of(given)}")
    for n, i in enumerate(given):
        if isinstance(i, bool) or not isinstance(i, int | np.integer):
            raise UserError(f"{kind}[{n}] is {i!r}; expected a whole number")
    return [int(i) for i in given]


def _check_ids(ids: Sequence[int], kind: str, model: ModelConfig) -> None:
    for n, i in enumerate(ids):
        if not 0 <= i < model.vocab_size:
            made = "" if kind.endswith("ids") else " (the tokenizer does not fit the model)"
            raise UserError(
                f"{kind}[{n}] is {i}, outside the vocabulary of {model.vocab_size}{made}"
            )


def _check_fit(length: int, config: DecodeConfig, infill: bool, model: ModelConfig) -> None:
    limit = model.max_length
    if infill:
        if length > limit:
            raise UserError(
                f"infilling: the sequence has {length} ids; the model takes at most {limit}"
            )
        return
    w = config.block_length
    total = length + model.canvas_positions(length, config.gen_length, w)
    if total > limit:
        blocks = limit // w * w  # a canvas that ends with a block ends there at most
        rooms = {"fixed": limit - length, "whole_blocks": blocks - length // w * w}
        room = rooms.get(model.canvas, blocks - length)
        lower = f" or lower gen_length to at most {room}" if room > 0 else ""
        raise UserError(
            f"the prompt has {length} tokens, with gen_length {config.gen_length} that is "
            f"{total}; the model takes {limit}: shorten the prompt{lower}"
        )


def _stops(given: Any) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else given
    if not isinstance(stops, Sequence) or not all(isinstance(s, str) for s in stops):
        raise UserError(f"stop should be a text or a list of texts, got {kind_of(given)}")
    if not all(stops):
        raise UserError("stop holds an empty text, which would cut every answer")
    return tuple(stops)


def _check_unicode(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UserError(f"{name} has a lone surrogate, which is not valid Unicode") from e
