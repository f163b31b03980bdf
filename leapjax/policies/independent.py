"""Greedy independent sets: repeatedly, the best position without a conflict with earlier ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from leapjax.policies.base import rank

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32


def independent_set(
    score: Float32[Array, "B W"],
    candidates: Bool[Array, "B W"],
    conflicts: Bool[Array, "B W W"],
) -> Bool[Array, "B W"]:
    """Candidates of which no two conflict, chosen greedily by score; ties go to the left.

    Each round takes all candidates that have no better candidate left among their conflicts, and
    drops their conflicts. This gives the same set as picking one at a time, in few rounds.
    `conflicts` are symmetric; the diagonal is not read.

    >>> line = jnp.array([[[0, 1, 0], [1, 0, 1], [0, 1, 0]]], bool)  # neighbours conflict
    >>> score = jnp.array([[0.9, 0.8, 0.7]])
    >>> independent_set(score, jnp.ones((1, 3), bool), line).tolist()
    [[True, False, True]]
    """
    order = rank(score, candidates)
    better = conflicts & (order[:, None, :] < order[:, :, None])  # [i, j]: j beats i

    def turn(sets):
        chosen, left = sets
        taken = left & ~jnp.any(better & left[:, None, :], axis=2)
        dropped = jnp.any(conflicts & taken[:, None, :], axis=2)
        return chosen | taken, left & ~taken & ~dropped

    none = jnp.zeros_like(candidates)
    return lax.while_loop(lambda sets: jnp.any(sets[1]), turn, (none, candidates))[0]
