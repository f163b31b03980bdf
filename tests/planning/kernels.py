"""Small Pallas kernels, and what they copy."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def _product(a, b, out):
    @pl.when(pl.program_id(2) == 0)
    def _():
        out[...] = jnp.zeros_like(out)

    out[...] += jnp.dot(a[...], b[...], preferred_element_type=jnp.float32)


def _double(index, a, out):
    out[...] = a[...] * 2


def _fetch(a, out):
    pltpu.sync_copy(a.at[pl.ds(0, 8)], out)


def _increase(a, out):
    out[...] = a[...] + 1


def _f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def calls(a, b, index, table, stack):
    """One call of each kind; the arguments are those of `SHAPES`."""
    product = pl.pallas_call(
        _product,
        grid=(4, 2, 2),
        in_specs=[
            pl.BlockSpec((128, 256), lambda i, j, k: (i, k)),
            pl.BlockSpec((256, 256), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((128, 256), lambda i, j, k: (i, j)),
        out_shape=_f32(512, 512),
        name="product",
    )
    rows = pl.pallas_call(
        _double,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(4,),
            in_specs=[pl.BlockSpec((8, 128), lambda i, index: (index[i], 0))],
            out_specs=pl.BlockSpec((8, 128), lambda i, index: (i, 0)),
        ),
        out_shape=_f32(32, 128),
        name="rows",
    )
    fetch = pl.pallas_call(
        _fetch,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec(memory_space=pltpu.VMEM),
        out_shape=_f32(8, 128),
        name="fetch",
    )
    pieces = pl.pallas_call(
        _increase,
        grid=(8, 3),
        in_specs=[pl.BlockSpec((None, 200, 128), lambda i, j: (i, j, 0))],
        out_specs=pl.BlockSpec((None, 200, 128), lambda i, j: (i, j, 0)),
        out_shape=_f32(8, 512, 128),
        name="pieces",
    )
    whole = pl.pallas_call(_increase, out_shape=_f32(512, 128), name="whole")
    return product(a, b), rows(index, table), fetch(table), pieces(stack), whole(table)


SHAPES = [
    jax.ShapeDtypeStruct((512, 512), jnp.bfloat16),
    jax.ShapeDtypeStruct((512, 512), jnp.bfloat16),
    jax.ShapeDtypeStruct((4,), jnp.int32),
    _f32(512, 128),
    _f32(8, 512, 128),
]

# Bytes read and written of each call, and whether they are known exactly.
MOVED = {
    # A step takes another block of each: 16 of 128 x 256 and of 256 x 256. Results stay a step.
    "product": (16 * (128 + 256) * 256 * 2, 512 * 512 * 4, True),
    "rows": (4 * 8 * 128 * 4 + 128 * 4, 32 * 128 * 4, False),  # a block a step, and the index
    "fetch": (512 * 128 * 4, 8 * 128 * 4, False),  # it takes 8 rows, which nothing says
    "pieces": (8 * 512 * 128 * 4, 8 * 512 * 128 * 4, True),  # the last of 200 columns has 112
    "whole": (512 * 128 * 4, 512 * 128 * 4, True),
}
