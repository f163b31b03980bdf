"""Attention rules: which positions a query attends to, as a function of positions alone.

    rule x (query positions, key positions) -> mask, never stored as (B, T, T)

A rule is static. Its mask is a comparison of positions, which XLA fuses into the softmax.

Shapes: B rows, S queries, T keys.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int32


@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """Every position attends to every position (LLaDA, Dream).

    >>> import numpy as np
    >>> Bidirectional().mask(np.arange(3)[None], np.arange(3)[None])
    True
    """

    def mask(
        self, queries: Int32[Array, "B S"], keys: Int32[Array, "B T"]
    ) -> Bool[Array, "B S T"] | bool:
        """The attention mask of positions in their rows; it broadcasts to (B, S, T)."""
        return True


@dataclasses.dataclass(frozen=True)
class BlockCausal:
    """A position attends to its own block and all earlier ones; position 0 begins block 0.

    >>> import numpy as np
    >>> place = np.arange(4)[None]
    >>> BlockCausal(2).mask(place, place)[0].astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """

    length: int  # tokens per block

    def mask(self, queries: Int32[Array, "B S"], keys: Int32[Array, "B T"]) -> Bool[Array, "B S T"]:
        """See `Bidirectional.mask`."""
        return keys[:, None, :] // self.length <= queries[:, :, None] // self.length


@dataclasses.dataclass(frozen=True)
class Causal:
    """A position attends to itself and all earlier ones.

    >>> import numpy as np
    >>> Causal().mask(np.arange(3)[None], np.arange(3)[None])[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """

    def mask(self, queries: Int32[Array, "B S"], keys: Int32[Array, "B T"]) -> Bool[Array, "B S T"]:
        """See `Bidirectional.mask`."""
        return keys[:, None, :] <= queries[:, :, None]


@dataclasses.dataclass(frozen=True)
class Windowed:
    """A position attends to those less than `size` away, on both sides.

    >>> import numpy as np
    >>> Windowed(2).mask(np.arange(3)[None], np.arange(3)[None])[0].astype(int).tolist()
    [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    """

    size: int  # with 1 a position attends to itself only

    def mask(self, queries: Int32[Array, "B S"], keys: Int32[Array, "B T"]) -> Bool[Array, "B S T"]:
        """See `Bidirectional.mask`."""
        return abs(keys[:, None, :] - queries[:, :, None]) < self.size


@dataclasses.dataclass(frozen=True)
class Absent:
    """No position attends to another: hidden Markov chains, which have no attention.

    >>> import numpy as np
    >>> Absent().mask(np.arange(2)[None], np.arange(2)[None])[0].astype(int).tolist()
    [[1, 0], [0, 1]]
    """

    def mask(self, queries: Int32[Array, "B S"], keys: Int32[Array, "B T"]) -> Bool[Array, "B S T"]:
        """See `Bidirectional.mask`."""
        return keys[:, None, :] == queries[:, :, None]


Rule = Bidirectional | BlockCausal | Causal | Windowed | Absent
RULES = {
    "bidirectional": Bidirectional,
    "block_causal": BlockCausal,
    "causal": Causal,
    "windowed": Windowed,
    "absent": Absent,
}


def attention_mask(
    rule: Rule,
    queries: Int32[Array, "B S"],
    keys: Int32[Array, "B T"],
    valid: Bool[Array, "B T"] | Bool[Array, "B S T"],
) -> Bool[Array, "B T"] | Bool[Array, "B S T"]:
    """The attention mask of a rule, without pads: `valid` itself if the rule excludes nothing.

    `valid` is False at pads; with (B, S, T) it is one mask per query.

    >>> import numpy as np
    >>> place, valid = np.arange(3)[None], np.array([[True, True, False]])
    >>> attention_mask(Causal(), place, place, valid)[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    """
    if rule == Bidirectional():
        return valid
    mask = rule.mask(queries, keys)
    return mask & (valid[:, None, :] if valid.ndim == 2 else valid)
