"""What a policy is: a pure function and the options that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from leapjax.types import Decision, Proposal, RowOptions


class Pass(NamedTuple):
    """What is known about a pass besides the proposal.

    Attributes:
      quota: (B,) int32, positions that the schedule wants this pass (fixed schedules).
      options: the rows' numbers.
      columns: (B, W) int32, the columns of the row's T that the window covers.
      block: (B,) int32, the column where the active block starts.
      open: (B, T) bool, what is still to be decided anywhere in the row.
      memory: the policy's memory (`Policy.memory`), zeros in a block's first pass; else None.
      decided: (B, W) bool, the active block's positions that the policy committed; None unless
        it may take them back.
    """

    quota: Any
    options: RowOptions
    columns: Any = None
    block: Any = None
    open: Any = None
    memory: Any = None
    decided: Any = None


@dataclasses.dataclass(frozen=True)
class Policy:
    """A way to choose which masked positions commit.

    Attributes:
      name: how users call it.
      source: where the rule comes from.
      defaults: the options it reads, with their defaults; None = derived from the canvas or from
        another option (`DecodeConfig.value`).
      commit: `(proposal, masked, info) -> Decision`, with masked (B, W) bool; pure and
        traceable. In each row that has a mask, at least one position commits, unless a
        schedule says otherwise.
      needs: extra fields of `Proposal` to compute: margin, entropy, uniform, surprise, log_probs,
        recheck (which makes every pass compute a shadow of the block, without a KV cache).
      scheduled: the schedule fixes how many positions commit.
      memory: (block_length W, vocabulary V) -> name -> (shape without B, dtype) of what a row
        remembers from pass to pass of a block: zeros in a block's first pass, `info.memory`
        then, and replaced by the decision's. None remembers, and costs, nothing.
      adjust: `(logits, barred, masked, info) -> (logits, memory)`: changes the (B, W, V)
        logits before anything is proposed; barred (B, 1, V) or (1, 1, V) bool, ids that can't
        be proposed. The memory it returns is what `commit` sees. None changes nothing.
      remasks: it may take back what it committed in the active block, and bounds by itself how
        often; early stop is off.
    """

    name: str
    source: str
    defaults: Mapping[str, Any]
    commit: Callable[[Proposal, Any, Pass], Decision]
    needs: frozenset[str] = frozenset()
    scheduled: bool = False
    memory: Callable[[int, int], dict[str, tuple[tuple[int, ...], Any]]] | None = None
    adjust: Callable[[Any, Any, Any, Pass], tuple[Any, Any]] | None = None
    remasks: bool = False


def surest(confidence, masked):
    """The most confident masked position of each row; a tie goes to the left.

    Args:
      confidence: (B, W) float32, at least 0.
      masked: (B, W) bool.

    Returns:
      (B, W) bool with one True in each row that has a mask.
    """
    score = jnp.where(masked, confidence, np.float32(-1.0))  # below any probability
    slots = jnp.arange(score.shape[1], dtype=jnp.int32)[None, :]
    best = jnp.argmax(score, axis=1).astype(jnp.int32)[:, None]
    return masked & (slots == best)


def rank(score, masked):
    """Places of the masked positions when the best come first; ties go to the left.

    Args:
      score: (B, W) float32, higher is better.
      masked: (B, W) bool.

    Returns:
      (B, W) int32 from 0; what is not masked comes last.
    """
    lowered = jnp.where(masked, -score, jnp.inf)
    return jnp.argsort(jnp.argsort(lowered, axis=1, stable=True), axis=1)


def best_of(score, masked, quota):
    """The `quota` best masked positions of each row; ties go to the left.

    Args:
      score: (B, W) float32, higher is better.
      masked: (B, W) bool.
      quota: (B,) int32.

    Returns:
      (B, W) bool.
    """
    return masked & (rank(score, masked) < quota[:, None])
