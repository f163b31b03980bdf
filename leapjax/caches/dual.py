"""Dual cache: keep what lies on both sides of the block, recompute the block alone."""

from __future__ import annotations

import numpy as np

from leapjax.caches.refresh import Refreshing, lead


class Dual(Refreshing):
    """Fast-dLLM's dual cache."""

    name, help = "dual", "the block"

    def columns(self, program):
        """The block, and what predicts its first position."""
        return min(program.length, program.block_length + lead(program))

    def end(self, rows):
        """The end of the block; a generated block is all that is computed.

        The last window of an infilled sequence may reach back over what must stay.
        """
        if not rows.program.infill:
            return None
        return (rows.state.block + np.int32(rows.program.block_length))[:, None]
