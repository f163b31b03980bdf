"""Run the passes of finished decodes again and measure what the model proposed meanwhile.

A decode's canvas before step s holds the final token where `commit_step < s` and the mask
elsewhere, so a completion is enough to rebuild every pass:

     +------------------------------ while s < steps -----------------------------+
  s |-> canvas before s -> model, whole canvas -> token, confidence -> counts, s + 1 |
     +----------------------------------------------------------------------------+

What is carried is one number per position and one table of counts per row; logits live for
one block of one pass.

Shapes: B rows, T columns, C canvas, W block, V vocabulary.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.decoding import Program, forward, summary
from leapjax.decoding.proposal import propose
from leapjax.decoding.state import DecodeState
from leapjax.policies.localleap import anchor_distances

CONFIDENCE_BINS = 20
# Lower ends of the bins but the first; a threshold on an end falls as the policies' `>=` does.
CONFIDENCE_EDGES = (np.arange(1, CONFIDENCE_BINS) / CONFIDENCE_BINS).astype(np.float32)
FARTHEST = 32  # distances from here on share a bin
NO_ANCHOR = FARTHEST + 1  # the bin of passes without an anchor
DISTANCE_BINS = FARTHEST + 2


class Replayed(NamedTuple):
    """What was measured of B rows, int32.

    `pairs` counts (position, step) pairs before the committing step, by whether the position lies
    in the active block, whether it belongs to the answer, its confidence, and its distance to the
    nearest anchor; `agree` those of them whose proposal is the final token.
    """

    # (B, C): the first step from which on, up to the committing one, every proposal of the
    # position is its final token; -1 where no policy decided.
    since: Any
    # (B,): positions whose proposal in the committing step isn't their token: 0, but for
    # decisions closer than rounding.
    differs: Any
    pairs: Any  # (B, 2, 2, CONFIDENCE_BINS, DISTANCE_BINS)
    agree: Any  # like `pairs`


def replay_program(program: Program) -> Program:
    """The structure of a replay: proposals for the whole canvas, as a greedy pass makes them."""
    whole = {"block_length": program.gen_length, "static": ()}
    return dataclasses.replace(program, **whole, policy_name="confidence_threshold")


def proposals(params, state: DecodeState, program: Program, block_length: int):
    """The model's token and confidence for each canvas position.

    `block_length` is W: the head works on so many positions at once, as in the decode.
    """
    b, c = state.tokens.shape[0], program.gen_length
    columns = jnp.arange(program.length - c, program.length, dtype=jnp.int32)
    columns = jnp.broadcast_to(columns[None, :], (b, c))
    hidden = forward.model_pass(params, state, columns, program).hidden  # (B, C, D)
    blocks = jnp.moveaxis(hidden.reshape(b, c // block_length, block_length, -1), 1, 0)

    def one(piece):  # (B, W, D)
        if summary.applies(params, program):
            made = summary.propose(params, piece, state.options, program)
        else:
            logits = forward.window_logits(params, piece, state, program)
            made = propose(logits, state.options, None, jnp.ones(b, bool), program)
        return made.token, made.confidence

    token, confidence = lax.map(one, blocks)  # (C / W, B, W)
    return tuple(jnp.moveaxis(x, 0, 1).reshape(b, c) for x in (token, confidence))


def replay(
    params,
    state: DecodeState,
    final,
    commit_step,
    answer,
    steps,
    threshold,
    program: Program,
    block_length: int,
) -> Replayed:
    """Measure every pass of B decoded rows.

    `final` (B, C) are the canvases that came out; `commit_step` is -1 where early stop filled in;
    `answer` marks positions that belong to the answer; `steps` are the passes of the row that took
    most; `threshold` makes an undecided position of the active block an anchor.
    """
    b, c = final.shape
    given = state.tokens[:, : program.length - c]
    mask = jnp.int32(program.model.mask_token_id)
    place = jnp.arange(c, dtype=jnp.int32)[None, :] // block_length
    edges = jnp.asarray(CONFIDENCE_EDGES)[None, None, :]
    cells = (2, 2, CONFIDENCE_BINS, DISTANCE_BINS)

    def one_pass(carry):
        s, since, differs, pairs, agree = carry
        undecided = (commit_step < 0) | (commit_step >= s)
        canvas = jnp.where(undecided, mask, final)
        now = state.replace(tokens=jnp.concatenate([given, canvas], axis=1))
        token, confidence = proposals(params, now, program, block_length)
        same = token == final
        awaited = commit_step >= s
        begun = jnp.where(since < 0, s, since)
        since = jnp.where(awaited, jnp.where(same, begun, -1), since)
        differs = differs + jnp.sum((commit_step == s) & ~same, axis=1, dtype=jnp.int32)
        # The active block is that of the leftmost undecided position.
        active = jnp.argmax(undecided, axis=1).astype(jnp.int32)[:, None] // block_length
        in_block = place == active
        before, behind = anchor_distances(undecided & in_block & (confidence >= threshold))
        distance = jnp.minimum(before, behind)
        distance = jnp.where(distance >= c, NO_ANCHOR, jnp.minimum(distance, FARTHEST))
        level = jnp.sum(confidence[..., None] >= edges, axis=-1, dtype=jnp.int32)
        cell = (in_block.astype(jnp.int32), answer.astype(jnp.int32), level, distance)
        counted = commit_step > s  # in the committing step itself they agree by definition
        add = jax.vmap(lambda table, at, n: table.at[at].add(n))
        pairs = add(pairs, cell, counted.astype(jnp.int32))
        agree = add(agree, cell, (counted & same).astype(jnp.int32))
        return s + 1, since, differs, pairs, agree

    none, empty = jnp.full((b, c), -1, jnp.int32), jnp.zeros((b, *cells), jnp.int32)
    start = (jnp.int32(0), none, jnp.zeros(b, jnp.int32), empty, empty)
    end = lax.while_loop(lambda carry: carry[0] < steps, one_pass, start)
    return Replayed(*end[1:])


replay_jit = functools.partial(jax.jit, static_argnames=("program", "block_length"))(replay)
