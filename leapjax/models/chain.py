"""Hidden Markov chains over tokens: the exact conditionals of masked positions.

    tokens x_1 .. x_T, some observed    state z_i ~ transition[z_(i-1)], x_i ~ emission[z_i]
    before (forward scan), behind (backward scan) -> log p(x_i = v | all observed tokens)

Everything is in log space. An open position's emission is 1, a pad is skipped: no emission and no
transition. So a row's conditionals are those of the chain itself, whatever is given, decided, or
beside the row. Compute is float32 whatever compute dtype a decode names.

Shapes: B rows, T columns, W chosen columns, S states, V vocabulary.
Source: Rabiner 1989, "A tutorial on hidden Markov models", equations 19 to 27.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import logsumexp

from leapjax.models.config import ModelConfig
from leapjax.ops.primitives import take

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Bool, Float32, Int32

# The logarithm of probability 0: finite, so that differences of logits are numbers. A token that
# no state emits is thereby no evidence, instead of a contradiction.
FLOOR = np.float32(-1e4)


class Messages(NamedTuple):
    """What both scans know about the states.

    `gained` is log p(token | observed tokens before it), in nats; 0 where open or a pad. Its sum is
    the log-likelihood of what is observed.
    """

    before: Any  # (B, T, S) float32, log p(state | observed tokens before the column)
    behind: Any  # (B, T, S) float32, log p(observed tokens behind the column | state) + constant
    gained: Any  # (B, T) float32


def logs(params: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The weights as float32 logarithms of at least `FLOOR`: (S,), (S, S), (S, V)."""
    names = ("initial", "transition", "emission")
    initial, transition, emission = (
        jnp.maximum(params[n].astype(jnp.float32), FLOOR) for n in names
    )
    return initial, transition, emission


def observed(
    config: ModelConfig, ids: Int32[Array, "B T"], valid: Bool[Array, "B T"]
) -> Bool[Array, "B T"]:
    """(B, T) bool, the columns that hold a token."""
    return valid & (ids != config.mask_token_id)


def messages(
    params: Mapping[str, Any],
    config: ModelConfig,
    ids: Int32[Array, "B T"],
    valid: Bool[Array, "B T"],
) -> Messages:
    """Forward and backward scan over rows.

    `params` are log probabilities: `initial` (S,), `transition` (S, S), `emission` (S, V). `ids`
    have the mask id where open; `valid` is False at pads.
    """
    initial, transition, emission = logs(params)
    known = observed(config, ids, valid)
    evidence = jnp.where(known[..., None], emission.T[ids], jnp.float32(0))  # (B, T, S)
    steps = jnp.moveaxis(evidence, 1, 0), valid.T[..., None]

    def forward(state, step):
        seen, real = step
        joint = state + seen
        here = logsumexp(joint, axis=-1, keepdims=True)
        moved = logsumexp(joint[:, :, None] + transition[None], axis=1) - here
        return jnp.where(real, moved, state), (state, jnp.where(real, here, 0)[:, 0])

    def backward(state, step):
        seen, real = step
        moved = logsumexp((seen + state)[:, None, :] + transition[None], axis=2)
        moved = moved - jnp.max(moved, axis=-1, keepdims=True)
        return jnp.where(real, moved, state), state

    start = jnp.broadcast_to(initial, (ids.shape[0], initial.shape[0]))
    _, (before, gained) = lax.scan(forward, start, steps)
    _, behind = lax.scan(backward, jnp.zeros_like(start), steps, reverse=True)
    return Messages(jnp.moveaxis(before, 0, 1), jnp.moveaxis(behind, 0, 1), gained.T)


def conditionals(
    params: Mapping[str, Any], found: Messages, columns: Int32[Array, "B W"] | None = None
) -> Float32[Array, "B T V"] | Float32[Array, "B W V"]:
    """Log p(token | all observed tokens of the row but the column's own).

    `found` is from `messages`, `columns` are the columns to return (None: all). The result is at
    least `FLOOR`.
    """
    parts = found.before, found.behind
    before, behind = parts if columns is None else (take(x, columns) for x in parts)
    state = before + behind
    state = jnp.exp(state - logsumexp(state, axis=-1, keepdims=True))
    # A sum of probabilities: a term that underflows is below 1e-38 of a token's probability.
    emission = jnp.exp(logs(params)[2])
    share = jnp.einsum("bws,sv->bwv", state, emission, precision=lax.Precision.HIGHEST)
    return jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1)), FLOOR)


def _with_own(config: ModelConfig, logits, ids, known):
    """The same given the column's own token too: nothing else is possible there."""
    vocabulary = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None, :]
    own = jnp.where(vocabulary == ids[..., None], jnp.float32(0), FLOOR)
    return jnp.where(known[..., None], own, logits)


def hidden_states(
    params: Mapping[str, Any],
    config: ModelConfig,
    ids: Int32[Array, "B T"],
    positions: Int32[Array, "B T"],
    valid: Bool[Array, "B T"],
    dtype: DTypeLike = jnp.float32,
    outputs: Int32[Array, "B W"] | None = None,
) -> Float32[Array, "B T V"] | Float32[Array, "B W V"]:
    """Exact conditionals, with the interface of `transformer.hidden_states`.

    A chain counts valid columns, which says the same as `positions`; `dtype` is ignored: compute is
    float32. Without `outputs` all columns are returned. An entry is log p(token | all observed
    tokens of the row); at an observed column 0 for its token and `FLOOR` for the others. `head`
    returns it unchanged.
    """
    logits = conditionals(params, messages(params, config, ids, valid), outputs)
    known = observed(config, ids, valid)
    if outputs is not None:
        ids, known = take(ids, outputs), take(known, outputs)
    return _with_own(config, logits, ids, known)


def shadowed_states(
    params: Mapping[str, Any],
    config: ModelConfig,
    ids: Int32[Array, "B T"],
    positions: Int32[Array, "B T"],
    valid: Bool[Array, "B T"],
    dtype: DTypeLike,
    columns: Int32[Array, "B W"],
    source: Int32[Array, "B W"],
) -> tuple[Float32[Array, "B W V"], Float32[Array, "B W V"]]:
    """As `leapjax.models.shadow.shadowed_states`; the shadow leaves each column's token out.

    `columns` is the window, and `source` equal to it; `dtype` is ignored. The results are
    `hidden_states` of the window, and log p(token | all observed tokens of the row but the column's
    own).
    """
    shadow = conditionals(params, messages(params, config, ids, valid), columns)
    known = take(observed(config, ids, valid), columns)
    return _with_own(config, shadow, take(ids, columns), known), shadow


def dependence(
    params: Mapping[str, Any],
    config: ModelConfig,
    ids: Int32[Array, "B T"],
    valid: Bool[Array, "B T"],
    found: Messages,
    chosen: Bool[Array, "B T"],
) -> tuple[Float32[Array, " B"], Float32[Array, " B"]]:
    """How strongly the states at the chosen columns depend on each other, given what is observed.

    The states are then a Markov chain still, so both numbers are sums over neighbouring chosen
    columns. Where each state emits a token of its own they are the tokens' too, the expectations of
    log p(x_S | given) minus the sum of log p(x_i | given) under either side. `found` is from
    `messages` of the same rows, `chosen` are open columns. Both results are in nats and at least 0:
    the total correlation, KL(joint || separate), and the lautum information, KL(separate || joint):
    what drawing each by itself loses. Source of the latter: Palomar and Verdu 2008, doi
    10.1109/TIT.2007.915715.
    """
    _, transition, emission = logs(params)
    known = observed(config, ids, valid)
    evidence = jnp.where(known[..., None], emission.T[ids], jnp.float32(0)) + found.behind
    state = jax.nn.softmax(found.before + evidence, axis=-1)  # (B, T, S)
    each = (jnp.moveaxis(x, 1, 0) for x in (evidence, state, valid, chosen))

    def forward(carry, column):
        pair, begun, *totals = carry  # p(state at the last chosen column, state here)
        seen, now, real, here = column
        move = jax.nn.softmax(transition[None] + seen[:, None, :], axis=-1)
        moved = jnp.einsum("bas,bst->bat", pair, move, precision=lax.Precision.HIGHEST)
        pair = jnp.where(real[:, None, None], moved, pair)
        apart = jnp.sum(pair, axis=2)[:, :, None] * jnp.sum(pair, axis=1)[:, None, :]
        gap = jnp.maximum(jnp.log(pair), FLOOR) - jnp.maximum(jnp.log(apart), FLOOR)
        both = (jnp.sum(weight * gap, axis=(1, 2)) for weight in (pair, -apart))
        counts = here & begun
        totals = [t + jnp.where(counts, x, 0) for t, x in zip(totals, both, strict=True)]
        same = now[:, :, None] * jnp.eye(now.shape[1], dtype=now.dtype)[None]
        return (jnp.where(here[:, None, None], same, pair), begun | here, *totals), None

    b, s = ids.shape[0], transition.shape[0]
    zeros = jnp.zeros(b, jnp.float32)
    start = jnp.zeros((b, s, s), jnp.float32), jnp.zeros(b, bool), zeros, zeros
    (_, _, *totals), _ = lax.scan(forward, start, tuple(each))
    expected, lost = totals
    return expected, lost


def head(
    params: Mapping[str, Any], config: ModelConfig, hidden: Float32[Array, "B W V"]
) -> Float32[Array, "B W V"]:
    """The logits, which `hidden_states` has computed."""
    return hidden


def has_summary(params: Mapping[str, Any], config: ModelConfig) -> bool:
    """Never: no vocabulary is too large for all logits."""
    return False


def init_params(config: ModelConfig, logits: Mapping[str, Any]) -> dict[str, Any]:
    """Weights from unnormalised logarithms, named as `messages` takes them.

    The special ids' get probability 0.
    """
    special = [config.mask_token_id, config.eos_token_id, config.pad_token_id]
    emission = jnp.asarray(logits["emission"], jnp.float32).at[:, jnp.asarray(special)].set(FLOOR)
    out = {name: jnp.asarray(logits[name], jnp.float32) for name in ("initial", "transition")}
    out = out | {"emission": emission}
    return {n: jnp.maximum(jax.nn.log_softmax(x, axis=-1), FLOOR) for n, x in out.items()}
