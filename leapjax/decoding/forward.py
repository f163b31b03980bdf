"""The forward pass of a step: the window, the model's inputs, the logits.

With guidance the batch holds every row twice. The second copy has all given tokens replaced by the
mask token.

Shapes: B rows, R = B or 2 B with guidance, T columns, S some of them, W window, V vocabulary,
D width.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.caches import Outcome
from leapjax.decoding.program import Program
from leapjax.decoding.proposal import guided
from leapjax.decoding.state import DecodeState
from leapjax.models.network import network

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped

    from leapjax.models.transformer import Weights


@dataclasses.dataclass(frozen=True)
class Rows:
    """The model's view of a state's rows: the input of `Cache.forward`."""

    state: DecodeState
    program: Program

    def ids(self) -> Int32[Array, "R T"]:
        """(R, T) int32 token ids; with guidance also the rows with their prompts masked."""
        tokens = self.state.tokens
        if not self.program.guidance:
            return tokens
        mask = jnp.int32(self.program.model.mask_token_id)
        return jnp.concatenate([tokens, jnp.where(self.state.given, mask, tokens)])

    def select(self, chosen: Int32[Array, " G"], wanted: Bool[Array, " G"]) -> Rows:
        """Some of the rows, as far as a forward pass reads them.

        Rows where `wanted` is False get other tokens.
        """
        names = ("tokens", "given", "open", "first", "origin", "end", "block", "stored")
        fields = {name: getattr(self.state, name)[chosen] for name in names}
        fields["tokens"] = jnp.where(wanted[:, None], fields["tokens"], 0)
        return Rows(self.state.replace(**fields), self.program)

    def positions(self, columns: Int32[Array, "#B S"]) -> Int32[Array, "B S"]:
        """RoPE positions of columns: (B, S) int32, counted from the row's first token."""
        return jnp.maximum(columns - self.state.first[:, None], 0)

    def valid(self) -> Bool[Array, "B T"]:
        """(B, T) bool: columns that belong to the row."""
        column = jnp.arange(self.program.length, dtype=jnp.int32)[None, :]
        valid = column >= self.state.first[:, None]
        if not self.program.model.block_causal:  # these rows end with the last column
            return valid
        return valid & (column < self.state.end[:, None])

    def both(self, x: Shaped[Array, " B *rest"]) -> Shaped[Array, " R *rest"]:
        """Repeat a (B, ...) array for both copies if guided: (R, ...)."""
        return jnp.concatenate([x, x]) if self.program.guidance else x

    def predictors(self, columns: Int32[Array, "B W"]) -> Int32[Array, "B W"]:
        """(B, W) int32, the columns whose outputs predict the given columns (B, W).

        Shifted outputs: the one at i - 1 predicts position i (Dream, Fast-dLLM v2). A row's first
        token has no predecessor and is predicted by its own output.
        """
        if not self.program.model.shift_logits:
            return columns
        before = columns - 1
        return jnp.where(before >= self.state.first[:, None], before, columns)


def block_columns(
    block: Int32[Array, " B"], program: Program
) -> tuple[Int32[Array, "B W"], Bool[Array, "B W"]]:
    """Columns of each row's window, which contains the active block.

    If the last block is short (infilling), the window starts before it. The second array is True
    within the active block, whose first column is `block`.
    """
    w = program.block_length
    start = jnp.minimum(block, program.length - w)
    columns = start[:, None] + jnp.arange(w, dtype=jnp.int32)[None, :]
    return columns, columns >= block[:, None]


def model_pass(
    params: Weights, state: DecodeState, columns: Int32[Array, "B W"], program: Program
) -> Outcome:
    """Run the model on each row's window with the program's cache."""
    return program.kv_cache.forward(params, Rows(state, program), columns)


def window_logits(
    params: Weights, hidden: Float[Array, "R W D"], state: DecodeState, program: Program
) -> Float32[Array, "B W V"]:
    """Head and guidance: (R, W, D) hidden states -> (B, W, V) float32 logits."""
    logits = network(program.model).head(params, program.model, hidden)
    if not program.guidance:
        return logits
    conditional, unconditional = jnp.split(logits, 2)
    return guided(conditional, unconditional, state.options.cfg_scale)
