"""Dual cache: keep keys and values on both sides of the block, recompute only the block."""

import numpy as np

from leapjax.caches.refresh import Refreshing, lead


class Dual(Refreshing):
    """Fast-dLLM's dual cache."""

    name, help = "dual", "the block"

    def columns(self, program):
        """The block, and the column that predicts its first position."""
        return min(program.length, program.block_length + lead(program))

    def end(self, rows):
        """The end of the block."""
        return rows.state.block + np.int32(rows.program.block_length)
