"""One compiled program's slots on the device: refill, run, collect.

A lane owns a DecodeState of B slots. The engine above it decides who goes in; the lane
knows arrays, not queues.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.decoding import DecodeState, Program, initial_state, refill_jit, run_jit
from leapjax.decoding.state import idle_row, row_arrays, stack_rows
from leapjax.types import Request

# What is read back of a finished row.
_RESULT = ("tokens", "commit_step", "commit_kind", "commit_confidence")


class Lane:
    """B slots that decode one program.

    Args:
      params: the model's pytree, on the device.
      program: static structure.
      slots: B.
    """

    def __init__(self, params, program: Program, slots: int):
        self.program = program
        self.slots = slots
        self.params = params
        self.passes = 0  # iterations of the loop so far
        self.row_passes = 0  # of those, slots that had an unfinished row, summed
        self.tickets: list[Any] = [None] * slots  # who sits in each slot
        self._idle = idle_row(program)
        self._state: DecodeState = jax.tree.map(
            jnp.asarray, initial_state([], program, slots)
        )
        if program.cache != "none":
            from leapjax.decoding.cached import with_cache

            self._state = with_cache(self._state, program)

    @property
    def free(self) -> list[int]:
        """Slots without a row."""
        return [i for i, ticket in enumerate(self.tickets) if ticket is None]

    def put(self, arrivals: list[tuple[Any, Request]]) -> None:
        """Seat requests in free slots.

        Args:
          arrivals: (ticket, request) pairs, at most as many as slots are free.
        """
        if not arrivals:
            return
        rows = [self._idle] * self.slots
        chosen = np.zeros(self.slots, bool)
        for slot, (ticket, request) in zip(self.free, arrivals, strict=False):
            rows[slot] = row_arrays(request, self.program)
            chosen[slot] = True
            self.tickets[slot] = ticket
        self._state = refill_jit(self._state, stack_rows(rows), chosen)

    def start(self, max_passes: int, until_free: int) -> None:
        """Begin a chunk of passes; returns at once, the device works on.

        Args:
          max_passes: return after so many passes at the latest.
          until_free: return once so many slots are free or done.
        """
        before = self._state.iteration
        self._before = int(before)
        self._state = run_jit(
            self.params,
            self._state,
            jnp.int32(max_passes),
            jnp.int32(min(until_free, self.slots)),
            program=self.program,
        )

    def collect(self) -> list[tuple[Any, dict[str, np.ndarray]]]:
        """Wait for the chunk and take out the rows that it finished.

        Returns:
          (ticket, arrays of that row) pairs; the slots are free again.
        """
        done = np.asarray(self._state.done)
        self.passes += int(self._state.iteration) - self._before
        finished = [i for i, t in enumerate(self.tickets) if t is not None and done[i]]
        if not finished:
            return []
        host = {name: np.asarray(getattr(self._state, name)) for name in _RESULT}
        host |= {n: np.asarray(getattr(self._state, n)) for n in ("first", "steps", "full_passes")}
        out = []
        for slot in finished:
            out.append((self.tickets[slot], {k: v[slot] for k, v in host.items()}))
            self.tickets[slot] = None
        return out
