"""Which columns a row's active block covers, and which outputs predict them.

Shapes: B rows, T columns, W block, D width.
"""

from __future__ import annotations

import jax.numpy as jnp

from leapjax.decoding.program import Program


def block_columns(block, program: Program):
    """Columns of each row's window; it holds the active block.

    A short last block (infilling) keeps the window's size by reaching back.

    Args:
      block: (B,) int32, the active block's first column.
      program: static structure.

    Returns:
      (B, W) int32 columns, and (B, W) bool: within the active block.
    """
    w = program.block_length
    start = jnp.minimum(block, program.length - w)
    columns = start[:, None] + jnp.arange(w, dtype=jnp.int32)[None, :]
    return columns, columns >= block[:, None]


def predictors(columns, first, program: Program):
    """Columns whose outputs predict the given columns.

    Dream's output at i - 1 predicts position i; a position whose predecessor is a pad
    or does not exist is predicted by its own output.

    Args:
      columns: (B, W) int32.
      first: (B,) int32, the row's first real column.
      program: static structure.

    Returns:
      (B, W) int32.
    """
    if not program.model.shift_logits:
        return columns
    before = columns - 1
    return jnp.where(before >= first[:, None], before, columns)
