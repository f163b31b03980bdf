"""`DecodeState`: the loop carry, with one slot per row.

`leapjax.decoding.layout` says where a row's tokens lie. Rows share nothing, so refilling a slot
does not affect the others.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from leapjax.config import DecodeConfig
from leapjax.decoding.edits import empty_log
from leapjax.decoding.layout import layout
from leapjax.decoding.program import Program
from leapjax.idset import digest
from leapjax.types import EARLY_STOPS, Request


class RowOptions(struct.PyTreeNode):
    """Per-row options; traced, so a change never recompiles.

    Attributes:
      temperature: (B,) float32; 0 takes the most probable token.
      top_p: (B,) float32 in (0, 1]; 1 keeps everything.
      top_k: (B,) int32; 0 keeps everything.
      cfg_scale: (B,) float32; 0 is no guidance.
      early_stop: (B,) int8; what ends a row early, index in `leapjax.types.EARLY_STOPS`.
      logits_eos_inf: (B,) bool; eos is never proposed.
      confidence_eos_eot_inf: (B,) bool; eos and eot proposals have confidence 0.
      parameters: name -> (B,) float32, int32 or bool of each traced parameter of the policy.
    """

    temperature: Any
    top_p: Any
    top_k: Any
    cfg_scale: Any
    early_stop: Any
    logits_eos_inf: Any
    confidence_eos_eot_inf: Any
    parameters: dict[str, Any]


class PassCounts(struct.PyTreeNode):
    """Counts of a lane's passes with a KV cache; they stay 0 without one.

    Attributes:
      window_passes: () int32; passes in which at least one row computed its window.
      refreshed_rows: () int32; rows that refreshes computed.
      refresh_rows_wanted: () int32; rows that waited for a refresh. The difference filled turns.
    """

    window_passes: Any
    refreshed_rows: Any
    refresh_rows_wanted: Any


class DecodeState(struct.PyTreeNode):
    """State of B rows (B slots, T columns).

    Attributes:
      tokens: (B, T) int32; the mask id where open, the pad id outside the row.
      open: (B, T) bool; positions still to be decided, never inferred from ids.
      given: (B, T) bool; tokens of the request.
      first: (B,) int32; column of the row's first real token.
      origin: (B,) int32; column of canvas position 0, from which noise positions count.
      end: (B,) int32; column past the row's last position.
      block: (B,) int32; column where the active block starts.
      block_masks: (B,) int32; number of open positions of the active block at its start.
      block_step: (B,) int32; passes so far in the active block. With a KV cache, a row refreshes in
        the pass that starts with 0.
      steps: (B,) int32; passes whose proposals went to this row's policy.
      full_passes: (B,) int32; steps that computed the whole sequence. For a block-causal row with
        a KV cache: 1 if its prompt has whole blocks, which a prefill computes.
      stored: (B,) int32; for block-causal rows, the cache holds keys and values of all columns
        before it. Without a cache: end of the last block whose successor's first token is known.
      other_passes: (B,) int32; passes that were not steps: prefills, and passes that only store.
      done: (B,) bool; finished, or an idle slot.
      commit_step: (B, T) int32; -3 a seeded block's first token, -2 given, -1 not committed.
      commit_kind: (B, T) int8; codes of `COMMIT_KINDS`.
      commit_confidence: (B, T) float32 in [0, 1].
      key: (B, 5) uint32; what the row's PRNG key is made from (`row_keys`).
      iteration: () int32; loop iterations so far.
      counts: counts of these iterations.
      options: per-row options.
      cache: keys and values of the KV cache, or None.
      memory: name -> (B, ...), the policy's memory within a block, or None.
      edits: the log of committed and replaced tokens; None if the program replaces none.
    """

    tokens: Any
    open: Any
    given: Any
    first: Any
    origin: Any
    end: Any
    block: Any
    block_masks: Any
    block_step: Any
    steps: Any
    full_passes: Any
    stored: Any
    other_passes: Any
    done: Any
    commit_step: Any
    commit_kind: Any
    commit_confidence: Any
    key: Any
    iteration: Any
    counts: PassCounts
    options: RowOptions
    cache: Any = None
    memory: Any = None
    edits: Any = None


_DTYPES = {int: np.int32, float: np.float32, bool: np.bool_}

# Fields that `refill` keeps: they have no rows, or a row's first pass does not read them.
SHARED = ("iteration", "counts", "cache", "memory", "edits")

# Version of the map from seed and id to noise; a sampling job resumes only under the same version.
# 1 (leapjax 0.1): a 32-bit hash of the id. 2: a 64-bit hash.
NOISE_VERSION = 2


def key_material(request: Request) -> np.ndarray:
    """The material of a request's PRNG key, (5,) uint32; see `row_keys`.

    It has the seed (the request's own, else its job's), the upper and lower half of the id's 64-bit
    hash, whether to fold in the hash, and the sample's number. It is computed on the host, so that
    seating a row does not wait for a busy device.
    """
    own = request.seed is not None
    seed = request.seed if own else request.config.seed
    high, low = divmod(digest(request.id), 2**32)
    return np.array([seed, high, low, not own, request.sample or 0], np.uint32)


def row_keys(material):
    """The rows' PRNG keys: from a record's own seed, else from the job's seed and the record's id.

    `material` is (B, 5) uint32 from `key_material`; the keys are (B,) typed threefry keys.
    """

    def one(seed, high, low, by_id, sample):
        key = jax.random.key(seed, impl="threefry2x32")
        data = jax.random.key_data(key)
        by_hash = jax.random.fold_in(jax.random.fold_in(key, high), low)
        folded = jax.random.key_data(by_hash)
        key = jax.random.wrap_key_data(jnp.where(by_id > 0, folded, data), impl="threefry2x32")
        # Sample 0 equals a decode without samples.
        again = jax.random.key_data(jax.random.fold_in(key, sample))
        data = jnp.where(sample > 0, again, jax.random.key_data(key))
        return jax.random.wrap_key_data(data, impl="threefry2x32")

    return jax.vmap(one)(*material.T)


def row_arrays(request: Request, program: Program) -> dict[str, Any]:
    """The initial arrays of a request's row, in NumPy: field name -> array without the B axis.

    `options` is a dict of scalars. The prompt must fit into the program's columns.
    """
    t, w = program.length, program.block_length
    model = program.model
    ids = np.asarray(request.ids, np.int32)
    tokens = np.full(t, model.pad_token_id, np.int32)
    is_open = np.zeros(t, bool)
    first, origin, end = layout(request, program)
    tokens[first : first + len(ids)] = ids
    if request.infill:
        is_open[first:end] = ids == model.mask_token_id
    else:
        tokens[origin:end] = model.mask_token_id
        is_open[origin:end] = True
    given = np.zeros(t, bool)
    given[first:end] = ~is_open[first:end]
    block = int(np.argmax(is_open))
    if model.block_causal:
        block = block // w * w
    prefilled = int(prefill_end(np.int32(block), is_open[block], program))
    prefills = program.kv_cache.stores and prefilled > 0
    c = request.config.for_model(model)
    stop = c.early_stop
    # An eos ends no infilled sequence, and a policy may reopen one that it committed.
    if request.infill or program.policy.reopens:
        stop = "off"
    return {
        "tokens": tokens,
        "open": is_open,
        "given": given,
        "first": np.int32(first),
        "origin": np.int32(origin),
        "end": np.int32(end),
        "block": np.int32(block),
        "block_masks": np.int32(is_open[block : block + w].sum()),
        "block_step": np.int32(0),
        "steps": np.int32(0),
        "full_passes": np.int32(prefills),
        "stored": np.int32(0 if program.kv_cache.stores else prefilled),
        "other_passes": np.int32(prefills),
        "done": np.bool_(not is_open.any()),
        "commit_step": np.where(given, -2, -1).astype(np.int32),
        "commit_kind": np.zeros(t, np.int8),
        "commit_confidence": np.zeros(t, np.float32),
        "key": key_material(request),
        "options": {
            "temperature": np.float32(c.temperature),
            "top_p": np.float32(c.top_p),
            "top_k": np.int32(c.top_k or 0),
            "cfg_scale": np.float32(c.cfg_scale),
            "early_stop": np.int8(EARLY_STOPS.index(stop)),
            "logits_eos_inf": np.bool_(c.logits_eos_inf),
            "confidence_eos_eot_inf": np.bool_(c.confidence_eos_eot_inf),
            "parameters": {p.name: _DTYPES[p.kind](c.value(p.name) or 0) for p in program.traced},
        },
    }


def prefill_end(block, is_open, program: Program):
    """The end of the columns that a prefill stores: whole blocks before the first active one.

    If the model seeds blocks, the pass that stores the last of them also decides the active block's
    first token, so it is left to the loop. `block` () int32 is the first active block's first
    column, `is_open` () bool whether that column is open; or both (B,), as the result. It is 0 for
    bidirectional models.
    """
    if not program.model.block_causal:
        return block * 0
    if not program.model.seeds_blocks:
        return block
    leaves = (is_open & (block > 0)).astype(np.int32)
    return block - np.int32(program.block_length) * leaves


def idle_row(program: Program) -> dict[str, Any]:
    """The row of an idle slot: done from the start."""
    shape = {name: getattr(program, name) for name in ("gen_length", "block_length")}
    config = DecodeConfig(policy=program.policy_name, **shape).for_model(program.model)
    row = row_arrays(Request(id="", ids=(), config=config, seed=0), program)
    row["tokens"][:] = program.model.pad_token_id
    row["open"][:] = False
    row["first"] = np.int32(program.length)
    row["done"] = np.bool_(True)
    return row


def stack_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack rows along a leading B axis; `options` becomes RowOptions."""
    options = jax.tree.map(lambda *leaves: np.stack(leaves), *[r["options"] for r in rows])
    options = RowOptions(**options)
    stacked = {k: np.stack([r[k] for r in rows]) for k in rows[0] if k != "options"}
    return stacked | {"options": options}


def initial_state(requests: list[Request], program: Program, slots: int | None = None):
    """The state of a batch before its first pass, without a cache.

    Args:
      slots: B; default: one per request. Unused slots are idle.

    Returns:
      A DecodeState of NumPy arrays; the caller puts it on devices.
    """
    rows = [row_arrays(r, program) for r in requests]
    rows += [idle_row(program)] * ((slots or len(rows)) - len(rows))
    memory, edits = empty_memory(program, len(rows)), empty_log(program, len(rows))
    zero = np.int32(0)
    counts = PassCounts(window_passes=zero, refreshed_rows=zero, refresh_rows_wanted=zero)
    whole = {"iteration": zero, "counts": counts, "memory": memory, "edits": edits}
    return DecodeState(**stack_rows(rows), **whole)


def empty_memory(program: Program, slots: int):
    """The policy's memory for `slots` rows, all zeros; None if it has no memory."""
    if program.policy.memory is None:
        return None
    leaves = program.policy.memory(program.block_length, program.model.vocab_size)
    return {name: np.zeros((slots, *shape), dtype) for name, (shape, dtype) in leaves.items()}


def with_cache(state: DecodeState, program: Program, sharding=None) -> DecodeState:
    """Add the program's empty cache, if it has one; `sharding` is that of `Cache.init`."""
    cache = program.kv_cache.init(program, state.done.shape[0], sharding)
    return state.replace(cache=cache)


def refill(state: DecodeState, rows: dict[str, Any], chosen) -> DecodeState:
    """Put new rows into the chosen slots, (B,) bool; the other rows stay the same, bit for bit.

    `rows` holds B rows from `stack_rows`; the rows of other slots are ignored.
    """

    def pick(new, old):
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (old.ndim - 1)), new, old)

    fields = {}
    for field in dataclasses.fields(DecodeState):  # pyright: ignore[reportArgumentType]
        old = getattr(state, field.name)
        if field.name in SHARED:
            fields[field.name] = old
        else:
            fields[field.name] = jax.tree.map(pick, rows[field.name], old)
    return DecodeState(**fields)
