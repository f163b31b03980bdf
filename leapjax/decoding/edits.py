"""Edits: a row's log of written tokens, and how long a block may change.

    state, what a pass wrote -> log of the pass; passes of the block without masks -> finished?

Where a policy may replace tokens (`Program.edits`), a finished row's log becomes the `edits` and
the `committed_ids` of its completion. The end of a block is LLaDA2.1's (arXiv 2602.08676; checked
against the authors' `generate`): a block without masks stays open until a pass that began without
masks replaces nothing, and for at most `max_post_steps` such passes.

Shapes: B rows, P passes of a row, W block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from leapjax.decoding.program import Program
from leapjax.policies.parameters import MAX_POST_STEPS

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int32

    from leapjax.decoding.state import DecodeState


class EditLog(struct.PyTreeNode):
    """The commits and edits of the rows so far.

    A pass writes its entry before it counts as a step, so that entries before `DecodeState.steps`
    are the row's own, whatever the slot held before. `tokens` (B, P, W) int32 are 1 + the token
    that a pass committed, or put in place of another, and 0 elsewhere. `post_steps` (B,) int32 are
    passes over the active block that began without masks; in a block's first pass it counts as 0.
    """

    tokens: Any
    column: Any  # (B, P) int32, the first column of the pass's window
    post_steps: Any


def max_post_steps(program: Program) -> int:
    """The most passes over a block after its last mask; 0 for policies that don't read it."""
    return dict(program.static).get(MAX_POST_STEPS.name, 0)


def logged_passes(program: Program) -> int:
    """P: a pass for each position of a row's blocks, and `max_post_steps` for each block.

    Enough if every pass commits a position. A policy that also reopens has four times as many.

    >>> from leapjax import DecodeConfig
    >>> from leapjax.decoding import program_for
    >>> from leapjax.testing import tiny_config
    >>> config = DecodeConfig(policy="joint_threshold", gen_length=8, block_length=4)
    >>> shape = dict(length=32, dtype="float32", eot_token_id=None)
    >>> logged_passes(program_for(config, tiny_config(), **shape))  # 2 blocks
    40
    """
    w = program.block_length
    columns = program.length if program.infill else program.gen_length
    if program.model.block_causal and not program.infill:
        columns += w - 1  # blocks may begin with the prompt's last tokens
    passes = 4 * w if program.policy.reopens else w
    return -(-columns // w) * (passes + max_post_steps(program))


def empty_log(program: Program, slots: int) -> EditLog | None:
    """The log of `slots` rows before their first pass; None if nothing is replaced."""
    if not program.edits:
        return None
    p = logged_passes(program)
    return EditLog(
        tokens=np.zeros((slots, p, program.block_length), np.int32),
        column=np.zeros((slots, p), np.int32),
        post_steps=np.zeros(slots, np.int32),
    )


def room(state: DecodeState) -> Bool[Array, " B"]:
    """(B,) bool: rows whose log has an entry for this pass."""
    return state.steps < state.edits.column.shape[1]


def logged(
    state: DecodeState,
    columns: Int32[Array, "B W"],
    masked: Bool[Array, "B W"],
    live: Bool[Array, " B"],
    edited: Bool[Array, "B W"],
    committed: Bool[Array, "B W"],
    token: Int32[Array, "B W"],
    program: Program,
) -> tuple[DecodeState, Bool[Array, " B"]]:
    """Log a pass's commits and edits, and tell which blocks change no more.

    `state` is that before the pass counts as a step. `columns` are those of the window; `masked`
    are the block's open positions before the pass; `live` are the rows that it served, `edited` the
    positions whose token it replaced, `committed` those that it committed, `token` the new tokens.
    Returns the state and the rows whose block is finished if it has no masks now.
    """
    log = state.edits
    no_masks = ~jnp.any(masked, axis=1)
    before = jnp.where(state.block_step > 0, log.post_steps, 0)
    post_steps = before + (live & no_masks).astype(jnp.int32)

    @jax.vmap
    def write(entries, step, entry):
        return entries.at[step].set(entry, mode="drop")  # nothing is written past the end

    log = EditLog(
        tokens=write(log.tokens, state.steps, jnp.where(edited | committed, token + 1, 0)),
        column=write(log.column, state.steps, columns[:, 0]),
        post_steps=post_steps,
    )
    unchanged = no_masks & ~jnp.any(edited, axis=1)
    return state.replace(edits=log), unchanged | (post_steps >= max_post_steps(program))


def listed(log: EditLog, steps: int, commit_step: np.ndarray, origin: int) -> list[list[int]]:
    """A finished row's edits, by step and position: [step, position, new id] of each.

    `log` is that of the row, without the B axis; `commit_step` is that of the positions that its
    record has; `origin` is the column of the first of them.

    >>> tokens, column = np.array([[0, 0], [8, 0], [9, 1]]), np.array([4, 4, 6])
    >>> listed(EditLog(tokens, column, None), 3, np.array([0, 1, 1, 2]), origin=4)
    [[1, 0, 7], [2, 2, 8]]
    """
    step, place = np.nonzero(log.tokens[:steps])
    position = log.column[step] + place - origin
    known = (position >= 0) & (position < len(commit_step))
    commits = commit_step[np.where(known, position, 0)]
    # A position that was opened again, or filled with eos, has no earlier changes.
    known &= (commits >= 0) & (step > commits)
    found = np.stack([step, position, log.tokens[step, place] - 1], axis=1)
    return found[known].tolist()


def as_committed(
    log: EditLog, ids: list[int], changes: list[list[int]], commit_step: np.ndarray, origin: int
) -> list[int]:
    """The tokens that a finished row's positions were committed with, before any edit.

    The arguments are those of `listed`, `changes` what it returned, `ids` the final tokens of the
    same positions.

    >>> tokens, column = np.array([[6, 0], [8, 0], [9, 1]]), np.array([4, 4, 6])
    >>> as_committed(EditLog(tokens, column, None), [7, 2], [[1, 0, 7]], np.array([0, 1]), origin=4)
    [5, 2]
    """
    out = list(ids)
    for position in {position for _, position, _ in changes}:
        step = commit_step[position]
        out[position] = int(log.tokens[step, position + origin - log.column[step]]) - 1
    return out
