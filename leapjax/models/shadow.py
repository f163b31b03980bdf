"""A forward pass with a shadow of the window, in which no output sees the token it predicts.

Shapes: B rows, T columns, W window, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from leapjax.models import transformer
from leapjax.models.config import ModelConfig
from leapjax.ops.primitives import take

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Bool, Float, Int32

    from leapjax.models.transformer import Weights


def shadowed_states(
    params: Weights,
    config: ModelConfig,
    ids: Int32[Array, "B T"],
    positions: Int32[Array, "B T"],
    valid: Bool[Array, "B T"],
    dtype: DTypeLike,
    columns: Int32[Array, "B W"],
    source: Int32[Array, "B W"],
) -> tuple[Float[Array, "B W D"], Float[Array, "B W D"]]:
    """Hidden states of the windows, and of their shadows.

    The shadow is a second copy of the window: W masks appended to the T columns, at the positions
    whose outputs predict the window. It attends to itself and to the row, except that each shadow
    column skips the token that it predicts. The row does not attend to the shadow, so the row's own
    outputs do not change. `columns` is the window, `source` are the columns whose outputs predict
    it.
    """
    (b, t), w = ids.shape, columns.shape[1]
    all_columns = jnp.arange(t, dtype=jnp.int32)[None, None, :]
    real = valid[:, None, :]
    row_to_row = jnp.broadcast_to(real, (b, t, t))
    row_to_shadow = jnp.zeros((b, t, w), bool)
    shadow_to_row = real & (all_columns != columns[:, :, None])  # (B, W, T)
    shadow_to_shadow = jnp.ones((b, w, w), bool)
    mask = jnp.concatenate(
        [
            jnp.concatenate([row_to_row, row_to_shadow], axis=2),
            jnp.concatenate([shadow_to_row, shadow_to_shadow], axis=2),
        ],
        axis=1,
    )
    places = jnp.concatenate([positions, take(positions, source)], axis=1)
    masks = jnp.full((b, w), config.mask_token_id, ids.dtype)
    copied = jnp.concatenate([ids, masks], axis=1)
    hidden = transformer.hidden_states(params, config, copied, places, mask, dtype)
    return take(hidden, source), hidden[:, t:]
