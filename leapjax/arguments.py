"""What people hand to `LM`'s methods: one prompt or many, row counts, switches."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from leapjax.caches import CACHES
from leapjax.config import OPTIONS, DecodeConfig, check_keys
from leapjax.config.check import shown
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.types import Request

SHARE_PREFIX = ("auto", "on", "off")
_PROMPTS = "a text, messages, token ids, a record, or a list of them"


def listed(prompts: Any, what: str = "prompts") -> list[Any]:
    """Prompts as a list; one prompt given bare becomes a list of one.

    `prompts`: a text, messages, token ids, a record, a Request, or an iterable of them; `what`: it
    is called in messages.

    >>> listed("Why?"), listed([1, 2]), listed([[1, 2], "Why?"])
    (['Why?'], [[1, 2]], [[1, 2], 'Why?'])
    """
    prompts = [*streamed(prompts, what)]
    if prompts and isinstance(prompts[0], int | np.integer):
        return [prompts]
    if prompts and isinstance(prompts[0], Mapping) and {"role", "content"} <= prompts[0].keys():
        return [prompts]
    return prompts


def streamed(prompts: Any, what: str = "requests") -> Iterable[Any]:
    """Prompts as something to iterate over, nothing of it read yet.

    `prompts`: a text, a record, a Request, or an iterable of prompts; `what`: it is called in
    messages.
    """
    if isinstance(prompts, str | Mapping | Request):
        return [prompts]
    if isinstance(prompts, bytes | set | frozenset) or not isinstance(prompts, Iterable):
        raise UserError(f"{what} is {shown(prompts)}; expected {_PROMPTS}")
    return prompts


def check_ids(records: Iterable[Any]) -> None:
    """Refuse two records that bring the same id."""
    seen: set[str] = set()
    for number, record in enumerate(records, 1):
        if isinstance(record, Request):
            continue
        own = record.get("id") if isinstance(record, Mapping) else None
        text = str(number if own is None else own)
        if text in seen:
            raise UserError(
                f"record {number}: id {text!r} occurs twice (without an id, it is the "
                f"position, from 1); give every record an id of its own"
            )
        seen.add(text)


def row_count(given: Any, name: str = "batch_size") -> int | None:
    """A number of rows, at least 1; None stays None. `name`: of the argument."""
    return None if given is None else whole(given, name, 1)


def whole(given: Any, name: str, least: int) -> int:
    """A whole number. `name`: of the argument."""
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < least:
        raise UserError(f"{name} is {shown(given)}; expected a whole number of at least {least}")
    return int(given)


def switch(given: Any, name: str) -> bool:
    """True or False. `name`: of the argument."""
    if not isinstance(given, bool | np.bool_):
        raise UserError(f"{name} is {shown(given)}; expected True or False")
    return bool(given)


def sharing(given: Any, model: ModelConfig, config: DecodeConfig | None = None) -> bool:
    """Whether prompts share the keys and values of their common prefixes (`share_prefix`).

    `given`: `auto`, `on` or `off`, True or False; `config`: the job's options, complete; None if a
    record may have any.

    >>> from leapjax.testing import tiny_config
    >>> [sharing(word, tiny_config("sdar")) for word in ("auto", "on", "off")]
    [True, True, False]
    """
    word = {True: "on", False: "off"}.get(given, given) if isinstance(given, bool) else given
    if word not in SHARE_PREFIX:
        raise UserError(f"share_prefix is {shown(given)}; choose one of {', '.join(SHARE_PREFIX)}")
    if word == "on" and not model.block_causal:
        raise UserError(
            f"share_prefix is on, but in {model.family} a prompt's keys and values depend on what "
            "follows, so none are shared; choose auto or off"
        )
    if word == "on" and config is not None and not CACHES[config.for_model(model).cache].stores:
        raise UserError("share_prefix is on, but cache none keeps nothing; choose cache block")
    return word != "off" and model.block_causal


def check_names(options: Mapping[str, Any], method: str, *own: str) -> None:
    """Refuse keyword arguments that are no decode options.

    `options`: the keyword arguments that `method` does not name; `own`: the arguments that it does
    name, for suggestions.
    """
    check_keys(options, f"{method}()", (*OPTIONS, *own), "argument")
