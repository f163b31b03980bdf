"""Attention rules: which positions a query may see, from positions alone.

    rule x (query positions, key positions) -> mask, never stored as (B, T, T)

A rule is static. Its mask is a comparison of positions, which XLA fuses into the softmax.

Shapes: B rows, S queries, T keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """Every position sees every position (LLaDA, Dream)."""

    def sees(self, queries, keys):
        """The mask of some queries.

        Args:
          queries: (B, S) int32, positions in their rows.
          keys: (B, T) int32.

        Returns:
          (B, S, T) bool, or what broadcasts to it.
        """
        return True


@dataclasses.dataclass(frozen=True)
class BlockCausal:
    """Position i sees j iff j's block does not follow i's; blocks lie on absolute positions.

    Attributes:
      length: tokens of a block.
    """

    length: int

    def sees(self, queries, keys):
        """See `Bidirectional.sees`."""
        return keys[:, None, :] // self.length <= queries[:, :, None] // self.length


@dataclasses.dataclass(frozen=True)
class Causal:
    """Position i sees itself and what precedes it."""

    def sees(self, queries, keys):
        """See `Bidirectional.sees`."""
        return keys[:, None, :] <= queries[:, :, None]


@dataclasses.dataclass(frozen=True)
class Windowed:
    """Position i sees positions less than `size` away, on both sides.

    Attributes:
      size: positions; 1 sees itself alone.
    """

    size: int

    def sees(self, queries, keys):
        """See `Bidirectional.sees`."""
        return abs(keys[:, None, :] - queries[:, :, None]) < self.size


Rule = Bidirectional | BlockCausal | Causal | Windowed
RULES = {
    "bidirectional": Bidirectional,
    "block_causal": BlockCausal,
    "causal": Causal,
    "windowed": Windowed,
}


def seen(rule: Rule, queries, keys: Callable, valid):
    """What each query attends to: the rule, and no pads.

    Args:
      rule: the layers' rule.
      queries: (B, S) int32, positions.
      keys: gives (B, T) int32, positions; asked only if the rule needs them.
      valid: (B, T) bool, False marks pads; or (B, S, T) bool, for each query.

    Returns:
      `valid` as it is where the rule excludes nothing; else (B, S, T) bool.
    """
    if rule == Bidirectional():
        return valid
    mask = rule.sees(queries, keys())
    return mask & (valid[:, None, :] if valid.ndim == 2 else valid)
