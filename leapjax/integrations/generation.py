"""What a task of the evaluation harness asks of a generation (`generation_kwargs`), checked.

Names and rules are the harness's own (`normalize_gen_kwargs`): `do_sample: false` is greedy
whatever the temperature; without `do_sample` the temperature decides. Values may come as the text
that a command line holds: `"16"`, `"12.0"`, `"false"`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from leapjax.config import DecodeConfig, check_keys
from leapjax.config.check import shown
from leapjax.errors import UserError

_WHERE = "generation_kwargs"
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Everything else is refused rather than ignored.
_READ = ("until", *_LENGTHS, "do_sample", "temperature", "top_p", "top_k")
_SAMPLING = ("temperature", "top_p", "top_k")


class Asked(NamedTuple):
    """What a task asks of a generation."""

    stop: tuple[str, ...]  # texts that end it
    length: int | None  # most tokens, or None
    options: dict[str, Any]  # decode options, over those of the model


def read(asked: Mapping[str, Any], base: DecodeConfig, note: Callable[[str], None]) -> Asked:
    """Read a task's generation options.

    `asked`: as the harness hands them over; `note`: takes a line about what is asked for and has no
    effect. Raises UserError: an unknown name, or a value that it can't have.
    """
    check_keys(asked, _WHERE, _READ)
    given = {name: value for name, value in asked.items() if value is not None}
    lengths = {n: whole(given[n], f"{_WHERE}: {n}", 1) for n in _LENGTHS if n in given}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {value}" for name, value in lengths.items())
        raise UserError(f"{_WHERE}: {said} say different things; keep one of them")
    length = next(iter(lengths.values()), None)
    return Asked(_until(given.get("until", ())), length, _options(given, base, note))


def _options(
    given: Mapping[str, Any], base: DecodeConfig, note: Callable[[str], None]
) -> dict[str, Any]:
    own = {name: number(given[name], f"{_WHERE}: {name}") for name in _SAMPLING if name in given}
    if "top_k" in own:
        own["top_k"] = whole(own["top_k"], f"{_WHERE}: top_k", 0)
    sample = switch(given["do_sample"], f"{_WHERE}: do_sample") if "do_sample" in given else None
    if sample is False:
        unread = [n for n in own if own[n] != (0 if n == "temperature" else None)]
        if unread and own.get("temperature", 0) > 0:
            said = ", ".join(f"{name} {own[name]:g}" for name in unread)
            note(f"{said} has no effect: the task says do_sample: false; add do_sample=True")
        if base.temperature > 0:
            note(f"answers are sampled at the model's temperature {base.temperature:g}, "
                 "although the task says do_sample: false")  # fmt: skip
        return {}
    if sample and own.get("temperature", base.temperature) == 0:
        if "temperature" in own:
            note("do_sample: true has no effect at temperature 0")
        else:
            own["temperature"] = 1.0  # as transformers has it
            note("do_sample: true without a temperature: sampled at 1, as transformers does")
    return own


def _until(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) for s in stops):
        raise UserError(f"{_WHERE}: until is {shown(given)}; expected a text or a list of texts")
    return tuple(s for s in stops if s)


def number(given: Any, name: str) -> float:
    """A number, or text that spells one. `name`: it is called in messages."""
    try:
        value = float(given) if isinstance(given, int | float | str) else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if isinstance(given, bool) or not math.isfinite(value):
        raise UserError(f"{name} is {shown(given)}; expected a number")
    return value


def whole(given: Any, name: str, least: int) -> int:
    """A whole number, or text that spells one. `name`: it is called in messages."""
    try:
        value = number(given, name)
    except UserError:
        value = math.nan
    if not value.is_integer() or value < least:
        raise UserError(f"{name} is {shown(given)}; expected a whole number of at least {least}")
    return int(value)


def switch(given: Any, name: str) -> bool:
    """True or false, or text that spells one of them. `name`: it is called in messages."""
    word = given.lower() if isinstance(given, str) else given
    if word in ("true", "false"):
        return word == "true"
    if not isinstance(given, bool):
        raise UserError(f"{name} is {shown(given)}; expected true or false")
    return given
