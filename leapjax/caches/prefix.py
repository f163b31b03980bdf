"""Prefix cache: keep keys and values before the block, recompute the block and the suffix."""

import jax.numpy as jnp

from leapjax.caches.refresh import Refreshing, lead


class Prefix(Refreshing):
    """Fast-dLLM's prefix cache."""

    name, help = "prefix", "the block and what follows"

    def columns(self, program):
        """The longest suffix: the canvas, or the whole sequence when infilling."""
        if program.infill:
            return program.length
        return min(program.length, program.gen_length + lead(program))

    def end(self, rows):
        """The end of the row."""
        return jnp.full_like(rows.state.block, rows.program.length)
