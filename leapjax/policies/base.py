"""What a policy is: a pure function, and the parameters that it declares."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from leapjax.types import COMMIT, KEEP, SCHEDULE, Decision, Proposal

if TYPE_CHECKING:
    from leapjax.config import DecodeConfig


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An option of a decode. Flag, YAML key, record key, keyword, check and array follow from it.

    Attributes:
      name: the keyword; the flag has dashes.
      kind: int, float, bool or str.
      help: its meaning, in one line.
      default: the value where none is set; None leaves the option off.
      follows: the option whose value is the default, in place of `default`.
      low: the least value; None is the least that the kind's 32-bit type holds.
      high: the greatest value; None is the greatest that the type holds.
      above: `low` itself is refused.
      choices: the words of a str.
      traced: each row has its own value, and a change compiles nothing. Otherwise the value is
        part of the program, and a job has one.
      at_most: the option whose value this one may not exceed.
      check: `(config) -> None`, raises a UserError where the value does not fit other options.

    >>> Parameter("warmth", float, "how bold a pass is", 0.5, low=0, high=1).default
    0.5
    """

    name: str
    kind: type
    help: str
    default: Any = None
    follows: str | None = None
    low: float | None = None
    high: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()
    traced: bool = True
    at_most: str | None = None
    check: Callable[[DecodeConfig], None] | None = None

    def with_default(self, default: Any) -> Parameter:
        """The same option with another default, for one policy."""
        return dataclasses.replace(self, default=default)


class Row(NamedTuple):
    """A policy's row in tables of results.

    Attributes:
      policy: the policy's name.
      tokens: tokens a step that the row's name promises (fixed schedules); 0 promises none.
      label: the row's first column.
    """

    policy: str
    tokens: int
    label: str


class Pass(NamedTuple):
    """What a policy knows about a pass besides the proposal.

    Attributes:
      quota: (B,) int32, positions that the schedule wants this pass (fixed schedules).
      parameters: name -> (B,) of each of the policy's traced parameters, and the plain value of
        the others.
      columns: (B, W) int32, the columns of the row's T that the window covers.
      block: (B,) int32, the column where the active block starts.
      open: (B, T) bool, positions still to be decided anywhere in the row.
      memory: the policy's memory (`Policy.memory`), zeros in a block's first pass; else None.
      decided: (B, W) bool, positions of the active block that the policy committed; None unless
        it may reopen or replace them.
      standing: (B, W) int32, the tokens that the window holds; None where `decided` is.
    """

    quota: Any
    parameters: Mapping[str, Any]
    columns: Any = None
    block: Any = None
    open: Any = None
    memory: Any = None
    decided: Any = None
    standing: Any = None


@dataclasses.dataclass(frozen=True)
class Policy:
    """A way to choose which masked positions commit.

    What a policy does not declare costs its program nothing.

    Attributes:
      name: the name that users write.
      source: where the rule comes from.
      commit: `(proposal, masked, info) -> Decision`, with masked (B, W) bool; pure and
        traceable. In each row that has a mask, at least one position commits, unless a
        schedule says otherwise.
      parameters: the options that it reads. Those of `leapjax.policies.parameters` are shared.
      check: `(config) -> None`, raises a UserError where values contradict each other.
      needs: extra fields of `Proposal` to compute: margin, entropy, uniform, surprise, log_probs,
        recheck (which makes every pass compute a shadow of the block, without a KV cache).
      memory: (block_length W, vocabulary V) -> name -> (shape without B, dtype) of what a row
        remembers from pass to pass of a block: zeros in a block's first pass, `info.memory`
        then, and replaced by the decision's.
      adjust: `(logits, barred, masked, info) -> (logits, memory)`: changes the (B, W, V)
        logits before tokens are proposed; barred (B, 1, V) or (1, 1, V) bool, ids that can't
        be proposed. `commit` sees the memory that it returns.
      reopens: it may take back what it committed in the active block, and bounds by itself how
        often; early stop is off.
      replaces: it may put another token in place of one that it committed in the active block.
      label: the policy in tables of results; default: name and defaults.
      rows: (name, tokens a step, label) of each of its rows in tables, where there are several.
    """

    name: str
    source: str
    commit: Callable[[Proposal, Any, Pass], Decision]
    parameters: tuple[Parameter, ...] = ()
    check: Callable[[DecodeConfig], None] | None = None
    needs: frozenset[str] = frozenset()
    memory: Callable[[int, int], dict[str, tuple[tuple[int, ...], Any]]] | None = None
    adjust: Callable[[Any, Any, Any, Pass], tuple[Any, Any]] | None = None
    reopens: bool = False
    replaces: bool = False
    label: str = ""
    rows: tuple[tuple[str, int, str], ...] = ()

    @functools.cached_property
    def reads(self) -> dict[str, Parameter]:
        """The parameters by name, in the order declared."""
        return {p.name: p for p in self.parameters}

    @property
    def scheduled(self) -> bool:
        """Whether a schedule fixes how many positions commit (`parameters.SCHEDULED`)."""
        return "steps" in self.reads

    @property
    def revises(self) -> bool:
        """Whether it may change what it decided before."""
        return self.reopens or self.replaces

    def table_rows(self) -> dict[str, Row]:
        """The rows of tables of results that show this policy, by name."""
        if self.rows:
            return {name: Row(self.name, tokens, label) for name, tokens, label in self.rows}
        numbers = [f"{p.default:g}" for p in self.parameters if p.default and p.kind is not str]
        label = self.label or " ".join([self.name.replace("_", " "), *numbers])
        if self.scheduled:
            label += ", one token a step"
        return {self.name.replace("_", "-"): Row(self.name, int(self.scheduled), label)}


def commits(chosen, kind, memory=None) -> Decision:
    """The decision to commit some positions and to keep the others.

    Args:
      chosen: (B, W) bool, within the masked positions.
      kind: (B, W) codes of `COMMIT_KINDS`, or one for all.
      memory: what the policy remembers, if it has a memory.

    >>> commits(np.array([[True, False]]), kind=1).action.tolist()  # COMMIT, KEEP
    [[1, 0]]
    """
    action = jnp.where(chosen, jnp.int8(COMMIT), jnp.int8(KEEP))
    return Decision(action, jnp.broadcast_to(jnp.asarray(kind, jnp.int8), chosen.shape), memory)


def best_first(score: Callable[[Proposal, Pass], Any]) -> Callable[[Proposal, Any, Pass], Decision]:
    """The rule of a fixed schedule: as many positions as it asks for, the best ones first.

    Args:
      score: `(proposal, info) -> (B, W) float32`, higher is better; ties go to the left.

    Returns:
      The `commit` of a policy that reads `parameters.SCHEDULED`; its decisions are of kind
      schedule.
    """

    def commit(proposal, masked, info):
        return commits(best_of(score(proposal, info), masked, info.quota), SCHEDULE)

    return commit


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
