"""What routing decides: the experts that a pass reads, as an assumption in the place of data.

Routing is taken to be uniform and independent (`work.touched`). Each pass has its own number of
tokens, so the same kernel reads more experts in a prefill than in a window pass.

A TPU computes `lax.ragged_dot` in one kernel. Its grid has a step for each pair of a group (an
expert) and a tile of rows that meet. The compiler's text gives the tiles of rows, of the inner
width K and of the columns N. A step copies a block when its index differs from the last step's:

    weights   an expert's matrix once, if a tile holds all of K; else once a step
    rows      once for each tile of columns, if a tile holds all of K; else a tile a step
    result    once

A group without rows has no step, so the layers of a stack that are not this one cost nothing.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from leapjax.models.config import Experts
from leapjax.planning.hlo import Array, Instruction
from leapjax.planning.pallas import Moved
from leapjax.planning.work import touched

_TILES = re.compile(r'ragged_dot_tiling="(\d+),(\d+),(\d+)"')


@dataclasses.dataclass(frozen=True)
class Routing:
    """The tokens of a pass and the experts that they meet on a device."""

    experts: Experts  # of a layer
    tokens: int  # N of the replica
    devices: int = 1  # that a layer's experts are split over

    @property
    def touched(self) -> float:
        """Experts of a layer that a device reads, in the mean."""
        return touched(self.experts, self.tokens) / self.devices

    @property
    def pairs(self) -> float:
        """Pairs of a token and a chosen expert that a device computes, in the mean."""
        return self.tokens * self.experts.chosen / self.devices


def is_grouped(instruction: Instruction) -> bool:
    """Whether an instruction is the kernel of a `lax.ragged_dot`."""
    return _TILES.search(instruction.attributes) is not None


def moved(instruction: Instruction, operands: Sequence[Array], routing: Routing | None) -> Moved:
    """The shares of a grouped product's operands and result that are copied.

    `instruction`: the kernel's call; of its operands rows are (M, K) and matrices (G, K, N);
    `routing`: None assumes that every row has a group of its own.
    """
    found = _TILES.search(instruction.attributes)
    assert found is not None
    tile, inner, across = map(int, found.groups())
    matrices = max(i for i, a in enumerate(operands) if len(a.dims) == 3)
    lines = max(i for i, a in enumerate(operands[:matrices]) if len(a.dims) == 2)
    (m, k), (groups, _, n) = operands[lines].dims, operands[matrices].dims
    read, rows = (routing.touched, min(routing.pairs, m)) if routing else (min(groups, m), m)
    read = min(read, rows, groups)
    steps = read + max(math.ceil(rows / tile) - 1, 0)  # a tile's last group may go on in the next
    whole = inner >= k
    shares = [1.0] * len(operands)
    shares[lines] = math.ceil(n / across) * (rows if whole else steps * min(tile, m)) / m
    shares[matrices] = (read if whole else steps) / groups
    return Moved(tuple(shares), (rows / m,), routing is not None)
