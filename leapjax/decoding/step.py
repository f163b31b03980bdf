"""One step of the decode: propose, decide, commit, advance. Pure.

state -> window columns -> forward pass with the cache: hidden states, rows served
      -> Proposal -> policy: Decision -> tokens, records, log, next block, done -> state'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from leapjax.decoding import advance, edits, forward, schedule, summary, whole_rows
from leapjax.decoding.program import Program
from leapjax.decoding.proposal import never_proposed, probability, propose
from leapjax.decoding.state import DecodeState, PassCounts, row_keys
from leapjax.errors import UserError
from leapjax.ops.arrangement import log_frequency
from leapjax.ops.primitives import take
from leapjax.policies import Pass
from leapjax.types import COMMIT, NONE, REOPEN, REPLACE, SEED

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int32, Key

    from leapjax.models.transformer import Weights


def noise_keys(
    state: DecodeState, columns: Int32[Array, "B W"], program: Program
) -> Key[Array, "B W"] | None:
    """PRNG keys of this pass: a function of row key, row step and canvas position.

    None if the program draws no noise.
    """
    if not (program.sampling or "uniform" in program.policy.needs):
        return None
    fold = jax.random.fold_in
    at_step = jax.vmap(fold)(row_keys(state.key), state.steps)
    place = columns - state.origin[:, None]
    return jax.vmap(jax.vmap(fold, in_axes=(None, 0)))(at_step, place)


def passes_per_block(state: DecodeState, program: Program) -> Int32[Array, " B"]:
    """(B,) int32: passes that a fixed schedule spends on each block."""
    return state.options.parameters["steps"] // program.blocks


def quota(state: DecodeState, masked: Bool[Array, "B W"], program: Program) -> Int32[Array, " B"]:
    """(B,) int32: positions that the schedule commits now; zeros for threshold policies."""
    if not program.policy.scheduled:
        return jnp.zeros_like(state.block_step)
    if program.model.block_causal:
        passes = state.options.parameters["steps_per_block"]
        return schedule.by_block(program.block_length, state.block_step, passes)
    passes = passes_per_block(state, program)
    if program.schedule == "dream":
        return schedule.dream(jnp.sum(masked, axis=1, dtype=jnp.int32), state.block_step, passes)
    return schedule.even(state.block_masks, state.block_step, passes)


def step(params: Weights, state: DecodeState, program: Program) -> DecodeState:
    """Advance every unfinished row by one pass; finished rows don't change."""
    columns, in_block = forward.block_columns(state.block, program)
    outcome = forward.model_pass(params, state, columns, program)
    live = outcome.served
    masked = take(state.open, columns) & in_block & live[:, None]
    active = _active_sub_block(masked, program)
    masked = masked & active
    info = Pass(
        quota=quota(state, masked, program),
        parameters=state.options.parameters | dict(program.static),
        columns=columns,
        block=state.block,
        open=state.open,
        first=state.first,
        end=state.end,
        memory=_memory_at_start(state),
    )
    if program.edits or program.policy.reopens:
        decided = take(state.commit_step >= 0, columns) & in_block
        if program.policy.reopens:  # passes see one sub-block after the other
            decided = decided & active
        info = info._replace(decided=decided & live[:, None], standing=take(state.tokens, columns))
    proposal, info, first = _proposal(params, state, outcome, masked, info, program)
    decision = program.policy.commit(proposal, masked, info)
    if (decision.memory is None) != (state.memory is None):
        raise UserError(
            f"policy {program.policy.name}: `memory` is declared if, and only if, each decision "
            "has the new one: commits(chosen, kind, memory)"
        )
    with jax.named_scope("commit"):
        if program.model.seeds_blocks:
            state, moved = _seed(state, outcome, first, program)
        else:
            moved = live
        state, chosen, written = _apply(state, masked, info, proposal, decision, program)
        final = None
        if program.edits:
            edited, committed, token = written
            state, final = edits.logged(
                state, columns, masked, live, edited, committed, token, program
            )
        one, full = live.astype(jnp.int32), outcome.full & live
        other = ~state.done & ~live
        state = state.replace(
            steps=state.steps + one,
            block_step=state.block_step + one,
            full_passes=state.full_passes + full.astype(jnp.int32),
            stored=state.stored if outcome.stored is None else outcome.stored,
            other_passes=state.other_passes + other.astype(jnp.int32),
            iteration=state.iteration + 1,
            cache=outcome.cache,
            counts=_counted(state.counts, live, full, outcome, program),
            memory=_select_rows(live, decision.memory, state.memory),
        )
        return advance.advance(state, moved, chosen, final, program)


def _counted(counts: PassCounts, live, full, outcome, program: Program) -> PassCounts:
    """The counts after a pass; with no cache nothing is refreshed."""
    if not program.kv_cache.stores:
        return counts
    return PassCounts(
        window_passes=counts.window_passes + jnp.any(live & ~full).astype(jnp.int32),
        refreshed_rows=counts.refreshed_rows + outcome.refreshed,
        refresh_rows_wanted=counts.refresh_rows_wanted + jnp.sum(full, dtype=jnp.int32),
    )


def _proposal(params, state: DecodeState, outcome, masked, info: Pass, program: Program):
    """The model's proposal for the window, and `info` with the memory that `adjust` returned.

    Third: the most probable token of the window's first position and its confidence, (B,) each, if
    the model seeds blocks.
    """
    greedy = None
    if summary.applies(params, program):
        proposal = summary.propose(params, outcome.hidden, state.options, program)
    else:
        last_pass = None
        if program.holds_masks:
            last_pass = state.block_step >= passes_per_block(state, program) - 1
        keys = noise_keys(state, info.columns, program)
        logits = forward.window_logits(params, outcome.hidden, state, program)
        if program.model.seeds_blocks:
            greedy = propose(logits[:, :1], state.options, None, None, program.greedy)
        if program.policy.adjust is not None:
            barred = never_proposed(logits.shape[-1], state.options, program)
            logits, memory = program.policy.adjust(logits, barred, masked, info)
            info = info._replace(memory=memory)
        proposal = propose(logits, state.options, keys, last_pass, program, log_frequency(params))
    if outcome.shadow is not None:
        shadow = forward.window_logits(params, outcome.shadow, state, program)
        standing = probability(shadow, take(state.tokens, info.columns))
        proposal = proposal._replace(recheck=standing)
    if outcome.attention is not None:
        proposal = proposal._replace(attention=outcome.attention)
    if "sure" in program.policy.needs:
        proposal = proposal._replace(sure=whole_rows.sure(params, outcome.whole, state, program))
    greedy = greedy or proposal
    return proposal, info, (greedy.token[:, 0], greedy.confidence[:, 0])


def _active_sub_block(masked, program: Program):
    """(B, W) bool: the window's first sub-block that has a mask; all of it without sub-blocks."""
    size = program.sub_block_length
    if size is None or size == program.block_length:
        return jnp.ones_like(masked)
    number = jnp.arange(masked.shape[1], dtype=jnp.int32)[None, :] // size
    return number == jnp.argmax(masked, axis=1).astype(jnp.int32)[:, None] // size


def _seed(state: DecodeState, outcome, first, program: Program):
    """Decide the first token of each block whose predecessor this pass has stored.

    Returns the state and the rows that this pass changed or served, (B,) bool.
    """
    token, confidence = first
    stored = (state.stored < state.block) & (outcome.stored >= state.block) & ~state.done
    column = jnp.arange(program.length, dtype=jnp.int32)[None, :]
    where = stored[:, None] & (column == state.block[:, None]) & state.open
    state = state.replace(
        tokens=jnp.where(where, token[:, None], state.tokens),
        open=state.open & ~where,
        commit_step=jnp.where(where, -3, state.commit_step),
        commit_kind=jnp.where(where, jnp.int8(SEED), state.commit_kind),
        commit_confidence=jnp.where(where, confidence[:, None], state.commit_confidence),
    )
    return state, stored | outcome.served


def _memory_at_start(state: DecodeState):
    """The policy's memory at the start of the pass: zeros where a block begins."""
    if state.memory is None:
        return None
    return _select_rows(
        state.block_step > 0, state.memory, jax.tree.map(jnp.zeros_like, state.memory)
    )


def _select_rows(rows, memory, otherwise):
    """Select `memory` where `rows` (B,) bool is True, else `otherwise`, leaf by leaf."""

    def pick(new, old):
        return jnp.where(rows.reshape(rows.shape + (1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(pick, memory, otherwise)


def _apply(
    state: DecodeState, masked, info: Pass, proposal, decision, program: Program
) -> tuple[DecodeState, Any, Any]:
    """Apply the policy's decision: commit, replace and reopen positions.

    Returns the state; the rows in which it committed a stop id, (B,) bool; and, if the program
    edits, the positions that it replaced and those that it committed, both (B, W) bool, with their
    new tokens, (B, W) int32 (else None).
    """
    commit = masked & (decision.action == COMMIT)
    if proposal.held is not None:
        commit = commit & ~proposal.held
    state = _commit(state, info.columns, commit, proposal, decision)
    written = None
    if program.edits:
        state, edited, token = _replace(state, info, proposal, decision)
        written = edited, commit, jnp.where(commit, proposal.token, token)
    if program.policy.reopens:
        back = info.decided & (decision.action == REOPEN)
        state = _reopen(state, info.columns, back, program)
    return state, jnp.any(commit & advance.is_stop(proposal.token, program), axis=1), written


def _commit(state: DecodeState, columns, commit, proposal, decision) -> DecodeState:
    """Write the committed positions of the window back into the rows."""
    steps = jnp.broadcast_to(state.steps[:, None], commit.shape)
    return _write(
        state,
        columns,
        commit,
        tokens=proposal.token,
        open=jnp.zeros_like(commit),
        commit_step=steps,
        commit_kind=decision.kind,
        commit_confidence=proposal.confidence,
    )


def _replace(state: DecodeState, info: Pass, proposal, decision):
    """Replace committed tokens; a replacement by the same token changes nothing.

    The records of the commits stay. Returns the state, the positions replaced, (B, W) bool, and the
    tokens offered to them, (B, W) int32.
    """
    token = proposal.token if decision.token is None else decision.token
    edited = info.decided & (decision.action == REPLACE) & (token != info.standing)
    edited = edited & edits.room(state)[:, None]
    return _write(state, info.columns, edited, tokens=token), edited, token


def _reopen(state: DecodeState, columns, back, program: Program) -> DecodeState:
    """Reopen positions of the window and erase their records."""
    return _write(
        state,
        columns,
        back,
        tokens=jnp.full(back.shape, program.model.mask_token_id, jnp.int32),
        open=jnp.ones_like(back),
        commit_step=jnp.full(back.shape, -1, jnp.int32),
        commit_kind=jnp.full(back.shape, NONE, jnp.int8),
        commit_confidence=jnp.zeros(back.shape, jnp.float32),
    )


def _write(state: DecodeState, columns, where, **values) -> DecodeState:
    """Write (B, W) values into fields of the rows where the mask `where` (B, W) is True."""
    # Windows are contiguous. A select over all columns: a slice update per row would be a serial
    # loop over rows on a TPU.
    offset = jnp.arange(state.open.shape[1], dtype=jnp.int32)[None, :] - columns[:, :1]
    size = columns.shape[1]
    place = jnp.clip(offset, 0, size - 1)
    chosen = (offset >= 0) & (offset < size) & take(where, place)

    def write(old, new):
        return jnp.where(chosen, take(new.astype(old.dtype), place), old)

    fields = {name: write(getattr(state, name), new) for name, new in values.items()}
    return state.replace(**fields)
