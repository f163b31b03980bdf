"""The forward pass that also returns its attention map, for policies that read it.

Shapes: R rows (B, or 2 B with guidance), T columns, W window, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from leapjax.models.attention import Rule, attention_mask
from leapjax.models.config import ModelConfig
from leapjax.models.transformer import begin, layer_block, mixer
from leapjax.ops.attention_map import attention_map
from leapjax.ops.runs import fold

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Bool, Float, Float32, Int32

    from leapjax.models.transformer import Weights

LAYERS = 4  # the last layers, whose maps are averaged (DAWN, CLAD)


def attention_states(
    params: Weights,
    config: ModelConfig,
    ids: Int32[Array, "R T"],
    positions: Int32[Array, "R T"],
    valid: Bool[Array, "R T"],
    columns: Int32[Array, "B W"],
    received: bool,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "R T D"], tuple[Float32[Array, "B W T"], Float32[Array, "B T"] | None]]:
    """Like `transformer.hidden_states`; also the mean attention map of the last four layers.

    The maps of the first B rows' windows, `columns`, are wanted; with `received` also the sum of
    the map over the row's queries. Returns the hidden states and, of the map, [query, key], each
    row of which sums to 1: the window's rows, and the column sums or None.
    """
    model, ops, x, rope = begin(params, config, ids, positions, dtype)
    b = columns.shape[0]
    first = max(0, config.n_layers - LAYERS)
    counted = valid[:b] if received else None

    def body_of(rule: Rule):
        mask = attention_mask(rule, positions, positions, valid)
        attend = mixer(ops, mask)

        def mix(q, k, v, rope, outputs=None):
            mixed, (k, _) = attend(q, k, v, rope, outputs)
            return mixed, (ops.rotated(q, rope.queries), k)

        def body(index, layer, carry, outputs):
            x, total = carry
            x, (q, k) = layer_block(ops, x, layer, config.head_dim, rope, mix)

            @jax.named_scope("attention map")
            def add(total):
                own = attention_map(q[:b], k[:b], mask[:b], columns, counted)
                return jax.tree.map(jnp.add, total, own)

            if isinstance(index, int):  # a layer that is compiled by itself
                return x, add(total) if index >= first else total
            return x, lax.cond(index >= first, add, lambda total: total, total)

        return body

    rows = jnp.zeros((*columns.shape, ids.shape[1]), jnp.float32)
    zeros = rows, None if counted is None else jnp.zeros(counted.shape, jnp.float32)
    hidden, total = fold(model, [body_of(run.attention) for run in config.runs], (x, zeros))
    return hidden, jax.tree.map(lambda x: x / (config.n_layers - first), total)
