"""The exact costs of a finished decode's commits, for models whose truth is known.

A pass that commits several positions S at once writes tokens that are probable one by one, but not
necessarily together. The cost of this is log p(x_S | given) minus the sum of log p(x_i | given),
which a chain gives exactly (`leapjax.models.chain`). A completion's commit steps are enough to
rebuild every pass.

Shapes: B rows, T columns, C canvas, P passes, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.chains import rows_of, weights_of
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.models import ModelConfig, chain

if TYPE_CHECKING:
    from jaxtyping import Float


class Costs(NamedTuple):
    """Exact costs of the commits of finished decodes, in nats.

    Attributes:
      joint: (B, P) float64, log p(tokens committed in pass p | tokens decided before it).
      separate: (B, P) float64, the sum of log p(token | tokens decided before the pass).
      correlation: (B, P) float64, total correlation of the committed positions: the expectation of
        joint minus separate over the chain's own tokens. None unless each state has one token.
      lost: (B, P) float64, the expectation of separate minus joint over tokens that are drawn
        independently of each other (lautum information). None under the same condition.
    """

    joint: Float[np.ndarray, "B P"]
    separate: Float[np.ndarray, "B P"]
    correlation: Float[np.ndarray, "B P"] | None
    lost: Float[np.ndarray, "B P"] | None

    @property
    def error(self) -> Float[np.ndarray, "B P"]:
        """(B, P), joint minus separate: 0 for a pass that commits one position."""
        return self.joint - self.separate


def has_one_token_a_state(lm: LM) -> bool:
    """Whether the chain is one of order 1 over tokens: each state emits a token of its own."""
    emission = np.exp(np.asarray(weights_of(lm)["emission"], np.float64))
    tokens = emission.argmax(1)
    return len(set(tokens)) == len(tokens) and bool((emission.max(1) > 1 - 1e-6).all())


def commit_costs(
    lm: LM, prompts: Sequence[Sequence[int]], answers: Sequence[Any], length: int | None = None
) -> Costs:
    """The exact costs of every pass of finished decodes.

    Args:
      prompts: token ids.
      answers: completions, or mappings with `output_ids` and `commit_step`. All have the same
        canvas, and the policy never takes a commit back.
      length: columns of the batch, so that several batches share a compiled program; None is the
        length of the longest row.

    Returns:
      Costs. P is the canvas length; passes that a row did not make cost 0.

    Raises:
      UserError: not a chain, or different canvases.

    >>> from leapjax.chains import synthetic
    >>> lm = synthetic(4, 4, 0.9)
    >>> answers = lm.generate([[0, 1], [2]], gen_length=8, block_length=8, threshold=0.8)
    >>> commit_costs(lm, [[0, 1], [2]], answers).error.shape
    (2, 8)
    """
    made = [a if isinstance(a, Mapping) else vars(a) for a in answers]
    sizes = {len(a["output_ids"]) for a in made}
    if len(sizes) != 1:
        raise UserError(f"answers: canvases of {sorted(sizes)} tokens; expected one length")
    (c,) = sizes
    t = max(length or 0, c + max(map(len, prompts)))
    ids = np.full((len(made), t), lm.config.pad_token_id, np.int32)
    order, valid = np.full(ids.shape, c, np.int32), np.zeros(ids.shape, bool)
    for b, (prompt, answer) in enumerate(zip(prompts, made, strict=True)):
        first = t - c - len(prompt)
        ids[b, first:] = [*prompt, *answer["output_ids"]]
        steps = np.asarray(answer["commit_step"])
        order[b, first:] = [*[-1] * len(prompt), *np.where(steps == -1, c, steps)]
        valid[b, first:] = True
    passes = np.int32(max(int(np.where(order < c, order, -1).max()) + 1, 0))
    markov = has_one_token_a_state(lm)
    arguments = rows_of(lm.config, ids)[0], order, valid, passes
    found = _costs(weights_of(lm), *arguments, lm.config, c, markov)
    joint, separate, *both = (np.asarray(x, np.float64) for x in found)
    return Costs(joint, separate, *(both if markov else (None, None)))


@functools.partial(jax.jit, static_argnames=("config", "most", "markov"))
def _costs(params, ids, order, valid, passes, config: ModelConfig, most: int, markov: bool):
    """The four numbers of `Costs`, each (B, most); the last two 0 unless `markov`."""
    mask = jnp.int32(config.mask_token_id)

    def one(s, carry):
        gained, *tables = carry
        now = jnp.where(order < s, ids, mask)
        chosen = valid & (order == s)
        found = chain.messages(params, config, now, valid)
        logits = chain.conditionals(params, found)
        own = jnp.take_along_axis(logits, ids[..., None], axis=2)[..., 0]
        after = chain.messages(params, config, jnp.where(order <= s, ids, mask), valid).gained
        none = jnp.zeros(len(ids), jnp.float32)
        both = (none, none)
        if markov:
            both = chain.dependence(params, config, now, valid, found, chosen)
        separate = jnp.sum(jnp.where(chosen, own, 0), axis=1)
        values = (jnp.sum(after - gained, axis=1), separate, *both)
        return after, *(x.at[:, s].set(v) for x, v in zip(tables, values, strict=True))

    start = chain.messages(params, config, jnp.where(order < 0, ids, mask), valid).gained
    empty = jnp.zeros((len(ids), most), jnp.float32)
    return jax.lax.fori_loop(0, passes, one, (start, empty, empty, empty, empty))[1:]
