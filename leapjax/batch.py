"""Prompts as the arrays of one decode, for `leapjax.decoding.decode` and programs of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from leapjax.decoding import DecodeState, Program, initial_state
from leapjax.decoding.state import with_cache
from leapjax.errors import UserError
from leapjax.serve.completion import completion
from leapjax.serve.lane import result_arrays, row_of
from leapjax.types import Completion, Request

if TYPE_CHECKING:
    from leapjax.lm import LM

# Structure that a row may lack: its own numbers (temperature 0, …) leave it without effect.
_WIDER = ("sampling", "filtering", "guidance")


@dataclasses.dataclass(frozen=True)
class Batch:
    """The arguments of `leapjax.decoding.decode(params, state, program)`, made by `LM.batch`.

    Attributes:
      params: the model's pytree, in the layout that programs take.
      state: B rows before their first pass.
      program: the static structure; hashable, so it can be a static argument of `jax.jit`.
      requests: the rows' requests, in order.
      finish: see `leapjax.serve.engine.Engine`.
    """

    params: Any
    state: DecodeState
    program: Program
    requests: tuple[Request, ...]
    finish: Callable[[Request, list[int]], tuple[str, str]]

    @property
    def arguments(self) -> tuple[Any, DecodeState, Program]:
        """The arguments of `decode`, in order."""
        return self.params, self.state, self.program

    def completions(self, final: DecodeState) -> list[Completion]:
        """The rows' answers.

        Args:
          final: the state that `decode` returned.

        Returns:
          One Completion a row.
        """
        host = result_arrays(final)
        return [
            completion(request, row_of(host, b), self.program, self.finish)
            for b, request in enumerate(self.requests)
        ]


def batch(lm: LM, requests: Sequence[Request]) -> Batch:
    """Requests as one batch of rows.

    Args:
      lm: the model; its first replica's parameters are taken.
      requests: at least one; their options may differ in what each row has for itself.

    Raises:
      UserError: no request, or two that need programs of different structure.
    """
    if not requests:
        raise UserError("prompts is empty; a batch needs at least one")
    engine = lm.engine(len(requests))
    programs = [engine.program(r) for r in requests]
    union = {name: any(getattr(p, name) for p in programs) for name in _WIDER}
    program = dataclasses.replace(programs[0], length=max(p.length for p in programs), **union)
    for number, other in enumerate(programs, 1):
        for field in dataclasses.fields(Program):
            name = field.name
            if name in (*_WIDER, "length", "refresh_group"):
                continue
            if getattr(other, name) != getattr(program, name):
                raise UserError(
                    f"record {number}: {name} is {getattr(other, name)}, the first one's is "
                    f"{getattr(program, name)}; a batch has one {name}"
                )
    state = jax.tree.map(jnp.asarray, initial_state(list(requests), program))
    state = with_cache(state, program)
    return Batch(lm.replicas[0].params, state, program, tuple(requests), lm.finish)
