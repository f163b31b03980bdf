"""Values of options: brought to their type, held against their ranges and against each other."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
from typing import TYPE_CHECKING, Any

import numpy as np

from leapjax.config import pairs
from leapjax.errors import UserError
from leapjax.policies import POLICIES
from leapjax.policies.names import plain, policy_of, suggestion

if TYPE_CHECKING:
    from leapjax.config.decode import DecodeConfig

_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_LARGEST = 2**31 - 1
_MOST = 1e30  # float32 holds it, and a product with any logit
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxlevel = 2


def shown(value: Any) -> str:
    """A value in a message, of bounded length whatever it is."""
    try:
        return " ".join(_BRIEF.repr(value).split())
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def coerce(field: dataclasses.Field, value: Any) -> Any:
    """Bring a YAML, JSON or Python value to its field's type.

    Args:
      field: of `DecodeConfig`.
      value: as it came.

    Raises:
      UserError: it is not of that type.
    """
    name, kind = field.name, field.metadata["kind"]
    if name == "top_k" and isinstance(value, bool | int | float | str) and value in (0, "off"):
        return None  # YAML reads a bare `off` as false
    if value is None:
        if field.default is None:
            return None
        raise UserError(f"{name} has no value; the default is {field.default!r}")
    bad = UserError(f"{name} is {shown(value)}; expected {_expected(field)}")
    if getattr(value, "ndim", None) == 0:
        try:
            value = getattr(value, "item", lambda: value)()  # scalars of NumPy and JAX are welcome
        except TypeError:  # a tracer of jax
            raise UserError(
                f"{name} is traced by jax; set it with with_options (docs/research.md)"
            ) from None
    if kind in (bool, str):
        if not isinstance(value, kind):
            raise bad
        return _word(field, str(value)) if kind is str else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad
    if kind is int:
        if isinstance(value, float) and not value.is_integer():
            raise bad
        return int(value)
    try:
        value = float(value)
    except OverflowError:
        raise UserError(f"{name} is {shown(value)}; expected a smaller number") from None
    if not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; expected a finite number")
    return value


def _expected(field: dataclasses.Field) -> str:
    choices = field.metadata["choices"]
    if choices and field.name != "policy":
        return f"one of {', '.join(choices)}"
    return _WANTED[field.metadata["kind"]]


def _word(field: dataclasses.Field, value: str) -> str:
    """A word as the code spells it; the policy's name is looked up later."""
    choices = field.metadata["choices"]
    if not choices or field.name == "policy":
        return value
    if plain(value) in choices:
        return plain(value)
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"{field.name} is {shown(value)}; {hint}choose one of {', '.join(choices)}")


def policy(c: DecodeConfig) -> dict[str, Any]:
    """What the name of a policy says, as the registry's name and `steps`.

    Args:
      c: options within their ranges.

    Returns:
      The fields to set.

    Raises:
      UserError: an unknown name, or one that contradicts `steps` or `schedule`.
    """
    found = policy_of(c.policy)
    if found is None:
        raise UserError(f"policy is {shown(c.policy)}; {suggestion(c.policy)}")
    name, tokens = found
    if not tokens:
        return {"policy": name}
    # One pass a block is the fewest that a schedule can take.
    steps = max(c.gen_length // tokens // c.blocks, 1) * c.blocks
    for option, given, meant in (
        ("steps", c.steps, steps),
        ("schedule", c.schedule, "even"),
    ):
        if given not in (None, meant):
            raise UserError(
                f"{option} is {given}, but policy {c.policy} is {name} with {option} {meant}; "
                f"remove {option} or set policy {name}"
            )
    # A greedy decode's steps follow its canvas, as they do by default.
    return {"policy": name} if tokens == 1 else {"policy": name, "steps": steps}


def ranges(c: DecodeConfig) -> None:
    """Check each value by itself.

    Raises:
      UserError: a value is out of its range.
    """
    for name in ("threshold", "relaxed_threshold"):
        value = getattr(c, name)
        if value is not None and not 0.0 <= value <= 1.0:
            raise UserError(f"{name} is {value}; expected a probability between 0 and 1")
    for field in dataclasses.fields(c):
        value, allowed = getattr(c, field.name), field.metadata.get("own")
        if value is None or allowed is None:
            continue
        low, high, above = allowed["low"], allowed["high"], allowed["above"]
        if value < low or (above and value == low):
            least = "more than" if above else "at least"
            raise UserError(f"{field.name} is {shown(value)}; expected {least} {low}")
        if value > high:
            raise UserError(f"{field.name} is {shown(value)}; expected at most {high:g}")
    for name, least in (("radius", 0), ("steps", 1), ("gen_length", 1), ("block_length", 1)):
        value = getattr(c, name)
        if value is not None and value < least:
            raise UserError(f"{name} is {shown(value)}; expected at least {least}")
        if value is not None and value > _LARGEST:
            raise UserError(f"{name} is {shown(value)}; expected at most {_LARGEST}")
    if c.gen_length % c.block_length:
        raise UserError(
            f"block_length {c.block_length} does not divide gen_length {c.gen_length}; "
            f"choose a divisor, such as {_divisor_near(c.gen_length, c.block_length)}"
        )
    for name in ("temperature", "cfg_scale"):
        value = getattr(c, name)
        if value < 0:
            raise UserError(f"{name} is {value}; expected 0 or more")
        if value > _MOST:
            raise UserError(f"{name} is {value}; expected at most {_MOST:g}")
    # What is computed with is float32, where the smallest of Python's numbers are 0.
    if not 0.0 < np.float32(c.top_p) <= 1.0 or c.top_p > 1.0:
        raise UserError(f"top_p is {c.top_p}; expected more than 0 and at most 1")
    if c.top_k is not None and not 1 <= c.top_k <= _LARGEST:
        raise UserError(f"top_k is {shown(c.top_k)}; expected at least 1, or leave it off")
    if not 0 <= c.seed < 2**32:
        raise UserError(f"seed is {shown(c.seed)}; expected 0 to 2**32 - 1")


def together(c: DecodeConfig, policy_options: tuple[str, ...]) -> None:
    """Check values against the policy, and against each other.

    Args:
      c: options within their ranges.
      policy_options: names of those that belong to some policies only.

    Raises:
      UserError: the policy does not read an option that is set, or two contradict each other.
    """
    chosen = POLICIES[c.policy]
    for name in policy_options:
        if getattr(c, name) is not None and name not in chosen.defaults:
            reads = ", ".join(chosen.defaults) or "none"
            raise UserError(
                f"{name} is set, but policy {c.policy} does not read it (it reads: {reads}); "
                f"remove it or choose another policy"
            )
    if c.radius is not None and None not in (c.radius_left, c.radius_right):
        raise UserError(
            "radius is set, but radius_left and radius_right leave nothing to it; remove one"
        )
    for lower in ("relaxed_threshold", "low_threshold"):
        if lower in chosen.defaults and c.value(lower) > c.value("threshold"):
            raise UserError(
                f"{lower} {c.value(lower)} is above threshold {c.value('threshold')}; "
                f"lower {lower} or raise threshold"
            )
    if wrong := pairs.refusal(c.cache, policy=c.policy):
        raise UserError(wrong)
    if chosen.scheduled:
        if c.value("schedule") == "dream" and c.block_length != c.gen_length:
            raise UserError(
                f"schedule dream runs over the whole canvas; set block_length to gen_length "
                f"({c.gen_length}), not {c.block_length}"
            )
        if c.value("steps") % c.blocks:
            raise UserError(
                f"steps {c.value('steps')} is not a multiple of the {c.blocks} blocks "
                f"(gen_length {c.gen_length} / block_length {c.block_length})"
            )


def _divisor_near(n: int, wanted: int) -> int:
    divisors = {d for i in range(1, math.isqrt(n) + 1) if n % i == 0 for d in (i, n // i)}
    return min(divisors, key=lambda d: (abs(d - wanted), d))
