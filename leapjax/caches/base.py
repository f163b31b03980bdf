"""The protocol of a KV cache: its arrays, and the columns that a pass computes.

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
    """The result of one forward pass.

    Attributes:
      hidden: (R, W, D); hidden states of each row's window, before the head.
      served: (B,) bool; rows whose window is valid and goes to the policy.
      full: (B,) bool; rows that had a full pass.
      cache: the new `DecodeState.cache`.
      shadow: (R, W, D); hidden states of a copy of the window in which no output sees the token
        that it predicts. None unless the policy needs `recheck`.
      whole: (R, T, D); hidden states of every column, before the head. None unless the policy needs
        `sure` or `attention`.
      attention: `leapjax.types.Attention`, or None.
      stored: (B,) int32; the new `DecodeState.stored`, None if unchanged.
      refreshed: () int32; rows that cache refreshes computed, including rows that only fill up
        the group.
    """

    hidden: Any
    served: Any
    full: Any
    cache: Any
    shadow: Any = None
    whole: Any = None
    attention: Any = None
    refreshed: Any = 0
    stored: Any = None


class Cache(ABC):
    """A way to reuse keys and values from pass to pass.

    Objects are stateless: `DecodeState.cache` holds keys and values. `forward` may compute more
    columns than the window. For instance, a block's first pass (`block_step` 0) may also store the
    finished block before it.

    Attributes:
      help: the columns that most passes compute.
      stores: whether it keeps keys and values. If so, most passes compute only a part of a row.
      exact: whether its hidden states equal those of a pass over the whole sequence.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    stores: ClassVar[bool]
    exact: ClassVar[bool]

    @property
    def refreshes(self) -> bool:
        """Whether a row begins each block with a full pass."""
        return self.stores and not self.exact

    def folds(self, program: Program) -> bool:
        """Whether a block's first pass also stores the finished block before it."""
        return False

    def wide(self, program: Program, rows: int) -> bool:
        """Whether all passes compute two blocks of each row, like a pass that folds."""
        return False

    def shapes(self, program: Program, slots: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of keys and values, each (L, R, K, T, E); empty if nothing is stored."""
        model, rows = program.model, slots * 2 if program.guidance else slots
        shape = (model.n_layers, rows, model.n_kv_heads, program.length, model.head_dim)
        return (jax.ShapeDtypeStruct(shape, program.compute_dtype),) * 2 if self.stores else ()

    def init(self, program: Program, slots: int, sharding=None):
        """The cache of idle slots: zeros, or None if nothing is stored.

        Args:
          sharding: shape -> sharding of the array; None is the default device.
        """
        where = sharding or (lambda shape: None)
        shapes = self.shapes(program, slots)
        return tuple(jnp.zeros(s.shape, s.dtype, device=where(s.shape)) for s in shapes) or None

    @abstractmethod
    def columns(self, program: Program) -> int:
        """The number of columns that `steady` computes per row."""

    @abstractmethod
    def steady(self, params, rows: Rows, columns, cache) -> Any:
        """The forward pass of most steps, without a refresh; it only reads the cache.

        `columns` are those of the window, (B, W) int32; the hidden states are (R, W, D).
        """

    @abstractmethod
    def forward(self, params, rows: Rows, columns) -> Outcome:
        """The forward pass of a step: `steady`, plus full passes for the rows that need one."""
