"""Policies: a pure function and the parameters that it declares."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from leapjax.types import COMMIT, KEEP, SCHEDULE, Decision, Proposal

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32, Int, Int32

    from leapjax.config import DecodeConfig
    from leapjax.models.config import ModelConfig

# name -> (shape without B, dtype) of what a row remembers.
Memory = dict[str, tuple[tuple[int, ...], Any]]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The declaration of a decode option.

    Its flag, YAML key, record key, keyword argument, check and array follow from it.

    Attributes:
      name: the keyword; the flag has dashes.
      default: the default value; None turns the option off, which only `EDITING_THRESHOLD` of
        `leapjax.policies.parameters` may.
      follows: another option, whose value is the default instead of `default`.
      low: the smallest value; None is the smallest value of the kind's 32-bit type.
      high: the largest value; None is the largest value of the kind's 32-bit type.
      above: exclude `low` itself.
      choices: the allowed words of a str.
      traced: each row has its own value, and a change does not recompile. Otherwise the value is
        static, and a job has only one.
      at_most: another option, whose value is the upper bound.
      of_model: `(model) -> value or None`, the default for models that bring their own.
      check: `(config) -> None`, raises a UserError if the value contradicts other options. It is
        called when options are made, with `block_length` and `cache` None unless given, and again
        once the model is known (`config.model`).

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
    of_model: Callable[[ModelConfig], Any] | None = None
    check: Callable[[DecodeConfig], None] | None = None

    def with_default(self, default: Any) -> Parameter:
        """The same option with another default, for a single policy."""
        return dataclasses.replace(self, default=default)


class Row(NamedTuple):
    """A policy's row in tables of results.

    Attributes:
      tokens: tokens per step of the row (fixed schedules), or 0.
    """

    policy: str
    tokens: int
    label: str


class Pass(NamedTuple):
    """A policy's inputs in a pass, besides the proposal.

    Attributes:
      quota: (B,) int32, number of positions to commit in this pass; may exceed the open positions.
      parameters: name -> value; (B,) for a traced parameter, a Python value for a static one.
        `editing_threshold` is present only in programs with editing.
      columns: (B, W) int32, the columns of the window.
      block: (B,) int32, the first column of the active block.
      open: (B, T) bool, open positions of the whole row; False at pads, on either side of the row.
      first: (B,) int32, the row's first column.
      end: (B,) int32, the column after the row's last one.
      memory: the policy's memory (`Policy.memory`), zeros in a block's first pass, or None.
      decided: (B, W) bool, positions that the policy committed in the active block (in the active
        sub-block, if it may reopen them). None unless the policy may reopen or replace them.
      standing: (B, W) int32, the window's current tokens; None if `decided` is None.
    """

    quota: Any
    parameters: Mapping[str, Any]
    columns: Any = None
    block: Any = None
    open: Any = None
    first: Any = None
    end: Any = None
    memory: Any = None
    decided: Any = None
    standing: Any = None


@dataclasses.dataclass(frozen=True)
class Policy:
    """A rule that chooses which masked positions commit.

    A feature that a policy does not declare adds nothing to its program.

    Attributes:
      source: the paper or code that the rule comes from.
      commit: `(proposal, masked, info) -> Decision`, with masked (B, W) bool; pure and
        traceable. Commits at least one position in each row with a mask, unless a schedule says
        otherwise.
      parameters: the options that the policy reads; `leapjax.policies.parameters` has shared ones.
      check: `(config) -> None`, raises a UserError if values contradict each other; called when a
        `Parameter`'s `check` is called.
      needs: extra fields of `Proposal` to compute: margin, entropy, uniform, surprise, log_probs;
        and, without a KV cache, recheck (every pass computes a shadow of the block), sure (every
        column goes to the head), attention, and received (`attention.received`).
      memory: `(W, V) -> {name: (shape without B, dtype)}`, for block length W and vocabulary V:
        arrays that persist within a block. They are zero in its first pass; `info.memory` holds
        them, and `Decision.memory` replaces them.
      adjust: `(logits, barred, masked, info) -> (logits, memory)`: changes the (B, W, V) logits
        before tokens are proposed; barred (B, 1, V) or (1, 1, V) bool marks ids that can't be
        proposed. `commit` gets the returned memory.
      reopens: the policy may reopen positions that it committed in the active block. The rule
        itself must bound how often. Early stop is off.
      replaces: the policy may replace tokens that it committed in the active block. A policy that
        reads `parameters.EDITING_THRESHOLD` may do so if that is set. Records list the changes as
        `edits`. A row's log has room for one pass per position of its blocks (four if the policy
        also reopens) and, if the policy reads `max_post_steps`, for that many passes per block. In
        passes beyond that, nothing is replaced.
      main: the parameters that trade accuracy for steps. `leapjax evaluate --equal` moves them
        together, with the parameters that they bound (`at_most`). Default: `steps` of a fixed
        schedule, else the first parameter. For a probability, a lower value is bolder; for any
        other number, a higher one.
      label: the policy's label in tables of results; default: name and defaults.
      rows: (name, tokens per step, label) of each of its rows in tables, if there are several.
    """

    name: str
    source: str
    commit: Callable[[Proposal, Any, Pass], Decision]
    parameters: tuple[Parameter, ...] = ()
    check: Callable[[DecodeConfig], None] | None = None
    needs: frozenset[str] = frozenset()
    memory: Callable[[int, int], Memory] | None = None
    adjust: Callable[[Any, Any, Any, Pass], tuple[Any, Any]] | None = None
    reopens: bool = False
    replaces: bool = False
    main: tuple[str, ...] = ()
    label: str = ""
    rows: tuple[tuple[str, int, str], ...] = ()

    @functools.cached_property
    def reads(self) -> dict[str, Parameter]:
        """The parameters by name, in the order declared."""
        return {p.name: p for p in self.parameters}

    @property
    def scheduled(self) -> bool:
        """Whether the policy reads a schedule's `info.quota` (`parameters.SCHEDULED`)."""
        return "steps" in self.reads

    @property
    def tuned(self) -> tuple[Parameter, ...]:
        """The main parameters and the parameters that they bound; may be empty."""
        names = self.main or [n for n in ("steps", *self.reads) if n in self.reads][:1]
        return tuple(p for p in self.parameters if {p.name, p.at_most} & {*names})

    def table_rows(self) -> dict[str, Row]:
        """This policy's rows in tables of results, by name."""
        if self.rows:
            return {name: Row(self.name, tokens, label) for name, tokens, label in self.rows}
        numbers = [f"{p.default:g}" for p in self.parameters if p.default and p.kind is not str]
        label = self.label or " ".join([self.name.replace("_", " "), *numbers])
        if self.scheduled:
            label += ", one token a step"
        return {self.name.replace("_", "-"): Row(self.name, int(self.scheduled), label)}


def commits(
    chosen: Bool[Array, "B W"],
    kind: int | Int[Array, "#B #W"],
    memory: Mapping[str, Any] | None = None,
) -> Decision:
    """A decision that commits the chosen positions and keeps the others.

    `chosen` is a subset of the masked positions; `kind` holds codes of `COMMIT_KINDS`: one for all,
    or an array that broadcasts to (B, W).

    >>> commits(np.array([[True, False]]), kind=1).action.tolist()  # COMMIT, KEEP
    [[1, 0]]
    """
    action = jnp.where(chosen, jnp.int8(COMMIT), jnp.int8(KEEP))
    return Decision(action, jnp.broadcast_to(jnp.asarray(kind, jnp.int8), chosen.shape), memory)


def best_first(score: Callable[[Proposal, Pass], Any]) -> Callable[[Proposal, Any, Pass], Decision]:
    """The rule of a fixed schedule: commit the `info.quota` best positions, with kind `schedule`.

    `score` is `(proposal, info) -> (B, W) float32`, higher is better; ties go to the left. The
    policy has to read `parameters.SCHEDULED`.

    >>> commit = best_first(lambda proposal, info: proposal.confidence)
    >>> proposal = Proposal(token=None, confidence=np.array([[0.2, 0.9, 0.5]], np.float32))
    >>> info = Pass(quota=np.array([2]), parameters={})
    >>> commit(proposal, np.array([[True, True, True]]), info).action.tolist()
    [[0, 1, 1]]
    """

    def commit(proposal: Proposal, masked: Bool[Array, "B W"], info: Pass) -> Decision:
        return commits(best_of(score(proposal, info), masked, info.quota), SCHEDULE)

    return commit


def surest(confidence: Float32[Array, "B W"], masked: Bool[Array, "B W"]) -> Bool[Array, "B W"]:
    """The most confident masked position of each row that has one; ties go to the left.

    >>> surest(np.array([[0.9, 0.5, 0.7]], np.float32), np.array([[False, True, True]])).tolist()
    [[False, False, True]]
    """
    score = jnp.where(masked, confidence, np.float32(-1.0))  # below any probability
    slots = jnp.arange(score.shape[1], dtype=jnp.int32)[None, :]
    best = jnp.argmax(score, axis=1).astype(jnp.int32)[:, None]
    return masked & (slots == best)


def reaches(
    confidence: Float32[Array, "B W"], threshold: Float32[Array, " B"]
) -> Bool[Array, "B W"]:
    """Whether confidences are at least their row's threshold; none reaches 1.

    A softmax probability is below 1, but float32 rounds that of a very confident token to 1. A
    threshold of 1 means one commit per pass, which this rounding must not change.

    >>> confidence = np.array([[0.5, 0.75, 1.0]] * 2, np.float32)
    >>> reaches(confidence, np.array([0.75, 1.0], np.float32)).tolist()
    [[False, True, True], [False, False, False]]
    """
    least = threshold[:, None]
    return (confidence >= least) & (least < 1)


def rank(score: Float32[Array, "B W"], masked: Bool[Array, "B W"]) -> Int32[Array, "B W"]:
    """Ranks of the masked positions from 0, best (highest) first; ties go to the left.

    Unmasked positions come last.

    >>> rank(np.array([[0.9, 0.5, 0.7]], np.float32), np.array([[False, True, True]])).tolist()
    [[2, 1, 0]]
    """
    lowered = jnp.where(masked, -score, jnp.inf)
    return jnp.argsort(jnp.argsort(lowered, axis=1, stable=True), axis=1)


def best_of(
    score: Float32[Array, "B W"], masked: Bool[Array, "B W"], quota: Int32[Array, " B"]
) -> Bool[Array, "B W"]:
    """The `quota` best (highest) masked positions of each row; ties go to the left.

    >>> score, masked = np.array([[0.9, 0.5, 0.7]], np.float32), np.array([[True, True, True]])
    >>> best_of(score, masked, np.array([2])).tolist()
    [[True, False, True]]
    """
    return masked & (rank(score, masked) < quota[:, None])
