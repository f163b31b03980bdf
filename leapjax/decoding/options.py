"""Replace the per-row options of a state by concrete or traced values."""

from typing import Any

import jax.numpy as jnp

from leapjax.config import OPTIONS, check_keys, per_row
from leapjax.config.check import coerce
from leapjax.decoding.program import Program
from leapjax.decoding.state import DecodeState
from leapjax.errors import UserError
from leapjax.policies import PARAMETERS
from leapjax.policies.parameters import EDITING_THRESHOLD
from leapjax.types import EARLY_STOPS

# Options that work only if compiled into the program: (field of `Program`, options that set it).
_COMPILED = {
    "temperature": ("sampling", "temperature"),
    "top_p": ("filtering", "top_p or top_k"),
    "top_k": ("filtering", "top_p or top_k"),
    "cfg_scale": ("guidance", "cfg_scale"),
    EDITING_THRESHOLD.name: ("edits", EDITING_THRESHOLD.name),
}


def with_options(state: DecodeState, program: Program, **numbers: Any) -> DecodeState:
    """Replace per-row options; pure and traceable.

    Values may be traced: a function of a threshold compiles once for all thresholds. Ranges are
    not checked.

    Args:
      **numbers: per-row options by name, each a scalar for all rows or (B,). `early_stop` may be a
        word; as a number it is an index in `leapjax.types.EARLY_STOPS`.

    Raises:
      UserError: an option is unknown, static, or not read by this program.
    """
    names = [name for name in per_row() if name != "seed"]
    check_keys(numbers, "with_options()", names)
    own, fields = dict(state.options.parameters), {}
    for name, value in numbers.items():
        if name in PARAMETERS and name not in program.policy.reads:
            raise UserError(f"{name}: policy {program.policy_name} does not read it")
        part, how = _COMPILED.get(name, (None, None))
        if part is not None and not getattr(program, part):
            raise UserError(f"{name}: not compiled into this program; create the batch with {how}")
        if name == "early_stop" and isinstance(value, str):
            value = EARLY_STOPS.index(coerce(OPTIONS[name], value))
        if name not in own:
            fields[name] = _rows(value, getattr(state.options, name))
            continue
        # Options whose default follows this one change with it.
        followers = [p.name for p in program.policy.parameters if p.follows == name]
        for target in (name, *(f for f in followers if f not in numbers)):
            own[target] = _rows(value, own[target])
    return state.replace(options=state.options.replace(parameters=own, **fields))


def _rows(value: Any, like: Any):
    """Broadcast a value to (B,) in the option's dtype."""
    return jnp.broadcast_to(jnp.asarray(value).astype(like.dtype), like.shape)
