"""Large bfloat16 weights on a CPU, passed to compiled programs as plain 16-bit words.

XLA's CPU backend has no bfloat16 arithmetic: it widens what a loop slices, and moves the
widened copy of all layers out of the loop. For an 8B model that is 32 GB beside its 16.
Words of 16 bits are no numbers to it, so each layer is widened when its turn comes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# From here on the widened copy costs more than it saves; smaller models keep it.
PACK_FROM_BYTES = 2**30


def pack(params):
    """The parameters as a CPU program should take them; nothing is copied.

    Args:
      params: the model's pytree, on its device.

    Returns:
      The same pytree, with bfloat16 leaves as uint16 words where that saves memory: on one
      CPU device, from `PACK_FROM_BYTES` of bfloat16 weights on.
    """
    leaves = jax.tree.leaves(params)
    narrow = sum(x.size * 2 for x in leaves if x.dtype == jnp.bfloat16)
    devices = {d for x in leaves for d in x.devices()}
    if narrow < PACK_FROM_BYTES or [d.platform for d in devices] != ["cpu"]:
        return params

    def words(leaf):
        if leaf.dtype != jnp.bfloat16:
            return leaf
        return jax.device_put(np.asarray(leaf).view(np.uint16), may_alias=True)

    return jax.tree.map(words, params)


def unpack(leaf):
    """The bfloat16 array that 16-bit words stand for; other arrays as they are."""
    return lax.bitcast_convert_type(leaf, jnp.bfloat16) if leaf.dtype == jnp.uint16 else leaf
