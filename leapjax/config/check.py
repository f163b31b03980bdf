"""Check options: convert values to their types, check ranges and relations."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leapjax.config import pairs
from leapjax.errors import UserError
from leapjax.policies import PARAMETERS, POLICIES, Parameter, Policy
from leapjax.policies.names import policy_of, suggestion
from leapjax.policies.parameters import SCHEDULED
from leapjax.policies.registry import ROWS, plain

if TYPE_CHECKING:
    from leapjax.config.decode import DecodeConfig

_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_IDS = "a list of token ids"
_LARGEST_INT = 2**31 - 1
_LARGEST_FLOAT = 1e30  # its product with any logit is within float32's range
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxlevel = 2


def shown(value: Any) -> str:
    """Any value, formatted for a message at bounded length."""
    try:
        return " ".join(_BRIEF.repr(value).split())
    except ValueError:  # Python prints at most 4,300 digits
        return "a number with thousands of digits"


def few(names: Sequence[str], most: int = 20) -> str:
    """Names for a message: all of them, or the first `most` and how many more there are.

    >>> few(("a", "b", "c"), most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def coerce(p: Parameter, value: Any) -> Any:
    """Convert a YAML, JSON or Python value to its option's type. `value`: the value as given."""
    name, kind = p.name, p.kind
    if name == "top_k" and isinstance(value, bool | int | float | str) and value in (0, "off"):
        return None  # YAML reads a bare `off` as false
    if value is None:
        if p.default is None or name in PARAMETERS:
            return None
        raise UserError(f"{name} has no value; the default is {p.default!r}")
    bad = UserError(f"{name} is {shown(value)}; expected {_expected(p)}")
    if getattr(value, "ndim", None) == 0:
        try:
            value = getattr(value, "item", lambda: value)()  # accept scalars of NumPy and JAX
        except TypeError:  # a JAX tracer
            raise UserError(
                f"{name} is traced by jax; set it with with_options (docs/research.md)"
            ) from None
    if kind is tuple:
        return _ids(value, bad)
    if "off" in p.choices and (isinstance(value, bool) or str(value) == "on"):
        value = p.default if value else "off"  # YAML reads bare `on` and `off` as booleans
    if kind in (bool, str):
        if not isinstance(value, kind):
            raise bad
        return _word(p, str(value)) if kind is str else value
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


def _ids(value: Any, bad: UserError) -> tuple[int, ...]:
    value = value.tolist() if hasattr(value, "tolist") else value
    value = [value] if isinstance(value, int) else value
    if not isinstance(value, list | tuple) or not value:
        raise bad
    whole = [int(i) for i in value if isinstance(i, int | np.integer) and not isinstance(i, bool)]
    if len(whole) < len(value):
        raise bad
    return tuple(dict.fromkeys(whole))


def _expected(p: Parameter) -> str:
    if p.kind is tuple:
        return _IDS
    return f"one of {', '.join(p.choices)}" if p.choices else _KIND_NAMES[p.kind]


def _word(p: Parameter, value: str) -> str:
    """Normalise a word of `choices`; a policy's name is looked up later."""
    if not p.choices or plain(value) in p.choices:
        return plain(value) if p.choices else value
    near = difflib.get_close_matches(value, p.choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"{p.name} is {shown(value)}; {hint}choose one of {', '.join(p.choices)}")


def in_range(p: Parameter, value: Any) -> None:
    """Check a value of the right type against its option's range."""
    if value is None or p.kind in (bool, str):
        return
    if p.kind is tuple:
        for each in value:
            in_range(dataclasses.replace(p, kind=int), each)
        return
    low, high = _bounds(p)
    # The decode computes in float32, where very small floats round to 0.
    at_low = p.above and low <= value <= high and np.float32(value) == np.float32(low)
    if value < low or value > high or at_low:
        raise UserError(f"{p.name} is {shown(value)}; expected {_range(p, value > high)}")


def _bounds(p: Parameter) -> tuple[float, float]:
    most = _LARGEST_INT if p.kind is int else _LARGEST_FLOAT
    return (-most if p.low is None else p.low), (most if p.high is None else p.high)


def _range(p: Parameter, too_large: bool) -> str:
    """An option's range, or the bound that a value exceeds, for a message."""
    low, high = _bounds(p)
    if p.low is not None and p.high is not None:
        if p.above:
            return f"more than {_plain(low)} and at most {_plain(high)}"
        return f"{_KIND_NAMES[p.kind]} between {_plain(low)} and {_plain(high)}"
    if too_large:
        return f"at most {_plain(high)}"
    off = ", or leave it off" if p.default is None and p.follows is None else ""
    return f"{'more than' if p.above else 'at least'} {_plain(low)}{off}"


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def common(values: Mapping[str, Any], options: Mapping[str, Parameter]) -> None:
    """Check the options that every decode has. `values`: values by name, of the right types."""
    for name, p in options.items():
        in_range(p, values[name])


def policy(written: str, own: Mapping[str, Any]) -> tuple[str, str]:
    """Resolve the name of a policy.

    `own`: the policy parameters that are set. Returns the registry's name, and the row of `ROWS`
    whose number of passes the written name stands for, or "" where the policy's defaults say the
    same.
    """
    found = policy_of(written)
    if found is None:
        raise UserError(f"policy is {shown(written)}; {suggestion(written)}")
    name, tokens = found
    # One token per step is what the schedule's defaults are.
    if tokens > 1 or (tokens and any(p.name in own for p in SCHEDULED)):
        return name, next(row for row in ROWS if plain(row) == plain(written))
    return name, ""


def parameters(c: DecodeConfig) -> None:
    """Check the policy's parameters, and relations between the values in force.

    Raises UserError: the policy does not read a parameter that is set, a value is out of range, or
    two values contradict each other.
    """
    chosen = POLICIES[c.policy]
    for name, value in c.parameters:
        if name not in chosen.reads:
            reads = ", ".join(chosen.reads) or "none"
            raise UserError(
                f"{name} is set, but policy {c.policy} does not read it (it reads: {reads}); "
                f"remove it or choose another policy"
            )
        in_range(chosen.reads[name], value)
    if chosen.check is not None:
        chosen.check(c)
    if c.cache is not None and (wrong := pairs.refusal(c.cache, c.policy)):
        raise UserError(wrong)
    for p in chosen.parameters:
        upper = c.value(p.at_most) if p.at_most else None
        if upper is not None and c.value(p.name) > upper:
            raise UserError(
                f"{p.name} {c.value(p.name)} is above {p.at_most} {upper}; "
                f"lower {p.name} or raise {p.at_most}"
            )
        if p.check is not None:
            p.check(c)


def declaration(p: Parameter, owner: Policy) -> None:
    """Check a policy's declaration of a parameter.

    Raises UserError: the declaration is unusable, or contradicts one of the same name elsewhere.
    """
    from leapjax.config.decode import COMMON, DecodeConfig

    here, known = f"policy {owner.name}: parameter {p.name!r}", PARAMETERS.get(p.name)
    if not p.name.isidentifier() or plain(p.name) != p.name:
        raise UserError(f"{here}: a name has lowercase letters, digits and underscores")
    if p.name in COMMON or hasattr(DecodeConfig, p.name):
        raise UserError(f"{here} is an option of every decode; choose another name")
    if p.kind not in _KIND_NAMES or (p.kind is str and (p.traced or not p.choices)):
        raise UserError(f"{here}: kind is int, float, bool, or str with choices and traced=False")
    for field in ("kind", "choices", "traced"):
        if known is not None and getattr(p, field) != getattr(known, field):
            raise UserError(
                f"{here}: {field} is {getattr(p, field)}, but another policy declares "
                f"{getattr(known, field)}; choose another name"
            )
    for name in (p.follows, p.at_most):
        if name is not None and name not in owner.reads and name not in COMMON:
            raise UserError(f"{here} refers to {name}, which the policy does not read")
    if p.follows is None:
        if p.default is None and (known is None or known.default is not None):
            raise UserError(f"{here} has no default; set default or follows")
        try:
            in_range(p, coerce(p, p.default))
        except UserError as e:
            raise UserError(f"policy {owner.name}: the default of {e}") from e
