"""Numbers of the rows of a state, set anew: concrete or traced."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from leapjax.config import OWN, PER_ROW, POLICY_OPTIONS, check_keys
from leapjax.decoding.program import Program
from leapjax.decoding.state import DecodeState
from leapjax.errors import UserError

# What has an effect only where it was compiled in.
_COMPILED = {
    "temperature": ("sampling", "temperature"),
    "top_p": ("filtering", "top_p or top_k"),
    "top_k": ("filtering", "top_p or top_k"),
    "cfg_scale": ("guidance", "cfg_scale"),
}


def with_options(state: DecodeState, program: Program, **numbers: Any) -> DecodeState:
    """The state with other numbers in its rows; pure and traceable.

    Values may be traced, so that a function of a threshold compiles once for every threshold.
    They are not checked against their ranges.

    Args:
      state: B rows.
      program: of the decode.
      **numbers: per-row options by name: a scalar for all rows, or (B,).

    Returns:
      The new state.

    Raises:
      UserError: an unknown option, one that is static, or one that this program does not read.
    """
    names = [name for name in PER_ROW if name != "seed"]
    check_keys(numbers, "with_options()", names)
    own, fields = dict(state.options.own), {}
    for name, value in numbers.items():
        if name in POLICY_OPTIONS and name not in program.policy.defaults:
            raise UserError(f"{name}: policy {program.policy_name} does not read it")
        part, how = _COMPILED.get(name, (None, None))
        if part is not None and not getattr(program, part):
            raise UserError(f"{name}: not compiled into this program; make the batch with {how}")
        # A row's reach to either side was made from its radius.
        sides = [f"radius_{side}" for side in ("left", "right")] if name == "radius" else []
        for target in (name, *(s for s in sides if s in own and s not in numbers)):
            if target in OWN:
                own[target] = _rows(value, own[target])
            else:
                fields[target] = _rows(value, getattr(state.options, target))
    return dataclasses.replace(state, options=dataclasses.replace(state.options, own=own, **fields))


def _rows(value: Any, like: Any):
    """A value for each row, (B,), in the option's dtype."""
    return jnp.broadcast_to(jnp.asarray(value).astype(like.dtype), like.shape)
