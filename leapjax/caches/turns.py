"""Turns: passes over a few rows at a time, until no row waits.

Shapes: B rows, G rows of a turn.
"""

import jax.numpy as jnp


def take_turn(waiting, group: int):
    """Select the rows of a turn: the first `group` rows that wait.

    The first result is (G,) int32 rows, the second (B,) bool, the rows that wait afterwards; at
    least one of `waiting` (B,) is True. If fewer than G rows wait, the last of them fills the turn
    and is computed again.

    >>> rows, after = take_turn(jnp.array([False, True, True, False, True]), 2)
    >>> rows.tolist(), after.tolist(), take_turn(after, 2)[0].tolist()
    ([1, 2], [False, False, False, False, True], [4, 4])
    """
    count = jnp.cumsum(waiting, dtype=jnp.int32)  # of a waiting row: its number, from 1
    number = jnp.minimum(jnp.arange(1, group + 1, dtype=jnp.int32), count[-1])
    rows = jnp.argmax(count[None, :] == number[:, None], axis=1)
    return rows.astype(jnp.int32), waiting & (count > group)
