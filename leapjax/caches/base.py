"""The protocol of a KV cache: what the state carries, what a pass computes, who must refresh.

    init -> state.cache        empty, with `shapes`, born where it lives
    forward: params, rows, columns -> Outcome     every pass
    next_block: due -> due     where rows have finished a block

Shapes: B rows, R = B or 2 B with guidance, T columns, S columns computed, W block, D width,
L layers, K KV heads, E head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from leapjax.decoding.forward import Rows
    from leapjax.decoding.program import Program


class Outcome(NamedTuple):
    """What one forward pass gives.

    Attributes:
      hidden: (R, W, D); each row's window before the head.
      served: (B,) bool; rows whose window is valid and goes to the policy in this pass.
      full: (B,) bool; rows whose whole sequence was computed, which settles their refresh.
      cache: what the state carries on.
      shadow: (R, W, D); the window seen without the token that each output predicts. None
        unless the policy needs `recheck`.
    """

    hidden: Any
    served: Any
    full: Any
    cache: Any
    shadow: Any = None


class Cache(ABC):
    """A way to reuse keys and values from pass to pass.

    A cache is stateless: what it stores is `DecodeState.cache`. Which rows wait for a full
    pass is `DecodeState.due`, the iteration since which a row has waited, -1 if it does not.
    A pass may compute more columns than the window, for instance to store a finished block in
    the first pass of the next one (`state.block_step` is 0 there).

    Attributes:
      name: how users call it.
      help: what a pass computes, in a few words.
      source: where it comes from.
      stores: keys and values are kept, so a new row begins with a full pass, and most passes
        compute only a part of the sequence.
      exact: the hidden states are those of a pass over the whole sequence.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    source: ClassVar[str] = ""
    stores: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def shapes(self, program: Program, slots: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Keys and values, each (L, R, T, K, E) in the compute dtype; empty if nothing is stored.

        Args:
          program: static structure.
          slots: B.
        """
        if not self.stores:
            return ()
        model, rows = program.model, slots * 2 if program.guidance else slots
        shape = (model.n_layers, rows, program.length, model.n_kv_heads, model.head_dim)
        return (jax.ShapeDtypeStruct(shape, program.compute_dtype),) * 2

    def init(self, program: Program, slots: int, sharding=None):
        """What the state of idle slots carries: zeros, or None if nothing is stored.

        Args:
          program: static structure.
          slots: B.
          sharding: shape -> where such an array is made; None is the default device.
        """
        made = [
            jnp.zeros(s.shape, s.dtype, device=None if sharding is None else sharding(s.shape))
            for s in self.shapes(program, slots)
        ]
        return tuple(made) or None

    @abstractmethod
    def columns(self, program: Program) -> int:
        """Columns S that a row computes in a pass without a refresh."""

    @abstractmethod
    def steady(self, params, rows: Rows, columns, cache) -> tuple[Any, Any]:
        """The pass that most steps take: no row refreshes.

        Args:
          params: the model's pytree.
          rows: B rows.
          columns: (B, W) int32, each row's window.
          cache: as in the state.

        Returns:
          (R, W, D) hidden states of the windows, and the cache after the pass.
        """

    @abstractmethod
    def forward(self, params, rows: Rows, columns) -> Outcome:
        """The model's part of a step, with the refreshes that are due.

        Args:
          params: the model's pytree.
          rows: B rows.
          columns: (B, W) int32, each row's window.
        """

    def next_block(self, due, moved, iteration):
        """Who waits for a full pass once some rows have moved to another block.

        Args:
          due: (B,) int32, as in the state.
          moved: (B,) bool.
          iteration: () int32, the next one.

        Returns:
          (B,) int32.
        """
        return due
