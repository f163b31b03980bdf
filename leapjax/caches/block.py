"""Block cache: exact keys and values of finished blocks, for block-causal models.

A finished block attends to nothing after it, so its keys and values are final. A prefill stores the
prompt's whole blocks; after that, passes compute the active block against the columns before it.

The pass that stores a finished block is folded into the next block's first pass, which is two
blocks wide. If the model seeds blocks, this is impossible: the storing pass's last output is the
next block's first token. Then a row stores in a separate pass, in which its policy decides nothing.

    stored < block:  [stored, stored + W) is computed and stored, and the block after it (folded)
    else:            [block, block + W) is computed, nothing is stored

Sources: BD3LM (arXiv 2503.09573), SDAR (arXiv 2510.06303), Fast-dLLM v2 (arXiv 2509.26328).

Shapes: B rows, R = B or 2 B with guidance, G rows of a turn, T columns, W block, S columns
computed, L layers, K KV heads, E head width, D width.
"""

import jax
import jax.numpy as jnp
from jax import lax

from leapjax.caches.base import Cache, Outcome
from leapjax.caches.turns import take_turn
from leapjax.models import block_passes
from leapjax.ops.cache import write_columns
from leapjax.ops.primitives import take


class Block(Cache):
    """The exact cache of block-causal models."""

    name, help = "block", "the block"
    stores, exact = True, True

    def columns(self, program):
        """The active block."""
        return program.block_length

    def folds(self, program) -> bool:
        """See `Cache.folds`; a single block has no successor."""
        two = 2 * program.block_length
        return not program.model.seeds_blocks and program.length >= two

    def wide(self, program, rows: int) -> bool:
        """Up to two turns' worth of rows: no slower than a narrow pass and a turn.

        A turn's FLOPs take as long as the weights' bytes (`leapjax.ops.hardware`): one unit of
        time. With r turns' worth of rows a wide pass takes max(1, r) of them, a narrow pass and a
        turn max(1, r / 2) + 1.
        """
        return self.folds(program) and rows <= 2 * program.refresh_group

    @jax.named_scope("window pass")
    def steady(self, params, rows, columns, cache):
        """Compute the active block of each row; see `Cache.steady`."""
        hidden, _ = _window(params, rows, cache, rows.state.block, rows.state.block, 1)
        return _predicting(hidden, rows) if rows.program.model.shift_logits else hidden

    def forward(self, params, rows, columns):
        """`steady`, and the passes that store a finished block."""
        if rows.program.model.seeds_blocks:
            return self._unfolded(params, rows)
        state, program = rows.state, rows.program
        if not self.folds(program):
            hidden = self.steady(params, rows, columns, state.cache)
            live = ~state.done
            return Outcome(hidden, live, jnp.zeros_like(live), state.cache, stored=state.stored)
        stores = ~state.done & (state.stored < state.block)
        if self.wide(program, columns.shape[0]):
            hidden, cache = _wide_pass(params, rows, stores)
        else:
            hidden, cache = self._in_turns(params, rows, columns, stores)
        stored = jnp.where(stores, state.stored + program.block_length, state.stored)
        served = ~state.done & (stored >= state.block)  # a gap of given blocks is stored alone
        return Outcome(hidden, served, jnp.zeros_like(served), cache, stored=stored)

    def _in_turns(self, params, rows, columns, stores):
        """Wide passes for a few rows that store at a time, a narrow pass for the others."""
        state, program = rows.state, rows.program
        moving = ~state.done & ~stores
        b, w = columns.shape
        shape = (2 * b if program.guidance else b, w, program.model.d_model)
        hidden = lax.cond(
            jnp.any(moving),
            lambda: self.steady(params, rows, columns, state.cache),
            lambda: jnp.zeros(shape, program.compute_dtype),
        )
        group = max(program.refresh_group, 1)

        @jax.named_scope("storing pass")
        def turn(carry):
            hidden, cache, waiting = carry
            chosen, after = take_turn(waiting, min(group, b))
            # As in a refresh: the ids depend on the carry, so that XLA can't hoist the pass.
            part = rows.select(chosen, waiting[chosen])
            both = jnp.concatenate([chosen, chosen + b]) if program.guidance else chosen
            fresh, kept = _wide(params, part, cache, both)
            columns, start = part.both(part.state.stored), part.both(_wide_start(part))
            wanted = part.both(waiting[chosen])
            cache = _store(cache, fresh, both, columns, wanted, kept, part, start)
            for i in range(both.shape[0]):
                hidden = lax.dynamic_update_index_in_dim(hidden, fresh[i], both[i], 0)
            return hidden, cache, after

        carry = (hidden, state.cache, stores)
        hidden, cache, _ = lax.while_loop(lambda carry: jnp.any(carry[2]), turn, carry)
        return hidden, cache

    @jax.named_scope("window pass")
    def _unfolded(self, params, rows):
        """One pass a row: over the block to store, or over the active one."""
        state, w = rows.state, rows.program.block_length
        waits = state.stored < state.block
        start = jnp.where(waits, state.stored, state.block)
        hidden, kept = _window(params, rows, state.cache, start, start, 1)
        stores, columns = rows.both(waits & ~state.done), rows.both(start)
        spots = _all(columns)
        cache = _store(state.cache, hidden, spots, columns, stores, kept, rows, columns)
        stored = jnp.where(waits, state.stored + w, state.stored)
        served = ~state.done & ~waits
        hidden = _predicting(hidden, rows)
        return Outcome(hidden, served, jnp.zeros_like(served), cache, stored=stored)


class SubBlock(Block):
    """Fast-dLLM v2's approximation within the active block.

    The whole block is computed, and its keys and values are kept, in its first pass and in every
    pass in which the first position of the active sub-block is open. The other passes compute only
    the sub-block, replace its keys and values, and attend to those kept for the rest of the block.
    """

    name, help, exact = "block", "the sub-block", False

    @property
    def refreshes(self):
        """It makes no full passes."""
        return False

    def forward(self, params, rows, columns):
        """A pass over the block or the sub-block; see the class."""
        state, program = rows.state, rows.program
        w, s = program.block_length, program.sub_block_length
        waits = state.stored < state.block
        is_open = take(state.open, columns)
        sub = jnp.argmax(is_open, axis=1).astype(jnp.int32) // s * s
        known = ~take(is_open, sub[:, None])[:, 0]
        short = ~waits & (state.block_step > 0) & known
        begin = jnp.where(waits, state.stored, state.block)

        start = state.block + sub
        column = jnp.arange(program.length, dtype=jnp.int32)[None, :]
        others = (column < state.block[:, None] + w) & (column < state.end[:, None])
        others = others & ((column < start[:, None]) | (column >= start[:, None] + s))
        part, kept = _window(params, rows, state.cache, start, start, 1, s, others)
        spot = rows.both(start)
        some = rows.both(short & ~state.done)
        cache = _store(state.cache, part, _all(spot), spot, some, kept, rows, spot, s)

        whole, kept = _window(params, rows, cache, begin, begin, 1)
        spot = rows.both(begin)
        most = rows.both(~short & ~state.done)
        cache = _store(cache, whole, _all(spot), spot, most, kept, rows, spot)

        # Output j - 1 of the sub-block predicts its position j; its first position is known.
        places = jnp.arange(w, dtype=jnp.int32)[None, :] - 1 - rows.both(sub)[:, None]
        within = take(part, jnp.clip(places, 0, s - 1))
        hidden = jnp.where(rows.both(short)[:, None, None], within, _predicting(whole, rows))
        stored = jnp.where(waits, state.stored + w, state.stored)
        served = ~state.done & ~waits
        return Outcome(hidden, served, jnp.zeros_like(served), cache, stored=stored)


SUB_BLOCK = SubBlock()


def _all(x):
    """The rows (R,) int32 of a pass over all of them."""
    return jnp.arange(x.shape[0], dtype=jnp.int32)


def _window(params, rows, cache, start, stored, blocks, size=None, others=None, places=None):
    """Compute `size` columns of each row from column `start`, (B,), on (default: whole blocks).

    The window attends to cached columns before `stored`, (B,) (or to `others`, (B, T) bool,
    instead), and computes anew those from it on. The keys and values of `cache` are (L, R, K, T, E)
    each; `places`, (R,), are the rows' in it (None: it has these rows alone). Returns (R, S, D)
    hidden states, and keys and values, (L, R, S, K, E) each.
    """
    program = rows.program
    size = size or blocks * program.block_length
    window = start[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
    if others is None:
        column = jnp.arange(program.length, dtype=jnp.int32)[None, :]
        others = column < stored[:, None]
    fresh = (window >= stored[:, None]) & (window < rows.state.end[:, None])
    each = size // blocks
    masks = [fresh & (window < start[:, None] + (i + 1) * each) for i in range(blocks)]
    return block_passes.block_states(
        params,
        program.model,
        take(rows.ids(), rows.both(window)),
        rows.both(rows.positions(window)),
        [rows.both(mask) for mask in masks],
        cache,
        rows.both(others),
        program.compute_dtype,
        places,
    )


def _wide(params, rows, cache, places=None):
    """The two blocks from `stored` on, or the active block and the one before it.

    Returns (R, W, D) hidden states of the second, and keys and values, (L, R, 2 W, K, E) each. The
    arguments are those of `_window`.
    """
    state, w = rows.state, rows.program.block_length
    start = _wide_start(rows)
    hidden, kept = _window(params, rows, cache, start, state.stored, 2, places=places)
    second = (state.block - start)[:, None] + jnp.arange(w, dtype=jnp.int32)[None, :]
    return take(hidden, rows.both(jnp.clip(second, 0, 2 * w - 1))), kept


def _wide_start(rows):
    """(B,) int32, the first column of a pass over two blocks."""
    state, w = rows.state, rows.program.block_length
    start = jnp.where(state.stored < state.block, state.stored, state.block - w)
    return jnp.clip(start, 0, rows.program.length - 2 * w)


@jax.named_scope("window pass")
def _wide_pass(params, rows, stores):
    """One pass over two blocks of every row: cheap where passes wait for the weights."""
    state = rows.state
    hidden, kept = _wide(params, rows, state.cache)
    columns, start = rows.both(state.stored), rows.both(_wide_start(rows))
    stores, spots = rows.both(stores), _all(columns)
    return hidden, _store(state.cache, hidden, spots, columns, stores, kept, rows, start)


@jax.named_scope("block write")
def _store(cache, hidden, places, columns, stores, kept, rows, start, size=None):
    """Write a block of each row that stores, row by row, from `columns`, (G,), on.

    What is written depends on the hidden states (G, W, D), so that the loop begins after the pass's
    last read of the cache. Otherwise a read might come after a write, and XLA's CPU backend copies
    the cache. `kept` are keys and values of the window, (L, G, S, K, E) each, which begins at
    `start`, (G,); `places`, (G,), are the rows' in the cache; `size` is the number of columns
    (default: one block).
    """
    size = size or rows.program.block_length
    number = jnp.arange(stores.shape[0], dtype=jnp.int32)

    def one(carry):
        cache, waiting = carry
        i = jnp.argmax(waiting).astype(jnp.int32)

        def write(c, fresh):
            layers, _, _, heads, width = fresh.shape
            place = (0, i, columns[i] - start[i], 0, 0)
            own = lax.dynamic_slice(fresh, place, (layers, 1, size, heads, width))
            return write_columns(c, places[i], columns[i], own)

        cache = tuple(write(c, f) for c, f in zip(cache, kept, strict=True))
        return cache, waiting & (number != i)

    carry = (cache, stores & ~jnp.isnan(hidden[:, 0, 0]))
    return lax.while_loop(lambda carry: jnp.any(carry[1]), one, carry)[0]


def _predicting(hidden, rows):
    """Outputs at the positions that they predict: shifted by one within the block.

    Position 0 gets the last output: of a pass that stores a block it predicts the next block's
    first token. In the row's first block, which has no predecessor, it gets its own.
    """
    first = rows.both(rows.state.block)[:, None, None] == 0
    return jnp.concatenate(
        [jnp.where(first, hidden[:, :1], hidden[:, -1:]), hidden[:, :-1]], axis=1
    )
