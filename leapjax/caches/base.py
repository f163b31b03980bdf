"""The protocol of a KV cache: what the state carries, what a pass computes, who must refresh.

Shapes: B rows, R = B or 2 B with guidance, T columns, W window, D width, L layers, K KV
heads, E head width.
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
      served: (B,) bool; rows whose window is valid and goes to the policy.
      full: (B,) bool; rows whose whole sequence was computed, so that they wait no more.
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

    An object holds no state: keys and values are `DecodeState.cache`, and `DecodeState.due` says
    who waits for a full pass. `forward` may compute more columns than the window, for instance
    to store a finished block in the first pass of the next one (`block_step` is 0 there).

    Attributes:
      name: how users call it.
      help: what most passes compute.
      stores: keys and values are kept: a row begins with a full pass, most others compute a part.
      exact: the hidden states are those of a pass over the whole sequence.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    stores: ClassVar[bool]
    exact: ClassVar[bool]

    def shapes(self, program: Program, slots: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Keys and values of so many slots, each (L, R, T, K, E); empty if nothing is stored."""
        model, rows = program.model, slots * 2 if program.guidance else slots
        shape = (model.n_layers, rows, program.length, model.n_kv_heads, model.head_dim)
        return (jax.ShapeDtypeStruct(shape, program.compute_dtype),) * 2 if self.stores else ()

    def init(self, program: Program, slots: int, sharding=None):
        """What the state of idle slots carries: zeros, or None if nothing is stored.

        Args:
          program: static structure.
          slots: B.
          sharding: shape -> where such an array is made; None is the default device.
        """
        where = sharding or (lambda shape: None)
        shapes = self.shapes(program, slots)
        return tuple(jnp.zeros(s.shape, s.dtype, device=where(s.shape)) for s in shapes) or None

    @abstractmethod
    def columns(self, program: Program) -> int:
        """Columns that `steady` computes in a row."""

    @abstractmethod
    def steady(self, params, rows: Rows, columns, cache) -> tuple[Any, Any]:
        """The pass that most steps take, without a refresh.

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
        """The model's part of a step: `steady`, and the full passes that are due."""

    def next_block(self, due, moved, iteration):
        """Who waits for a full pass, now that some rows have moved to another block.

        Args:
          due: (B,) int32, as in the state.
          moved: (B,) bool.
          iteration: () int32, the next one.

        Returns:
          (B,) int32.
        """
        return due
