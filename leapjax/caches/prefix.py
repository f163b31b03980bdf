"""Prefix cache: keep what lies before the block, recompute the block and all behind it."""

from __future__ import annotations

import jax.numpy as jnp

from leapjax.caches.refresh import Refreshing, lead


class Prefix(Refreshing):
    """Fast-dLLM's prefix cache."""

    name, help = "prefix", "the block and what follows"

    def columns(self, program):
        """The canvas is the longest suffix; an infilled sequence may be open anywhere."""
        if program.infill:
            return program.length
        return min(program.length, program.gen_length + lead(program))

    def end(self, rows):
        """The suffix reaches to the end of the row."""
        return jnp.int32(rows.program.length)
