"""The attention map of a pass: the originals' maps, what it averages, what it never holds."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax import checkpoint, converters
from leapjax.models import parse_config, transformer
from leapjax.models.attention_states import attention_states
from leapjax.models.quantize import quantize
from leapjax.ops import arrangement, split
from leapjax.ops.attention_map import attention_map
from leapjax.ops.runs import fold
from leapjax.testing import tiny_config, tiny_params

GOLDEN = Path(__file__).parents[1] / "golden"
MAPS = GOLDEN / "attention.npz"
states = jax.jit(attention_states, static_argnames=("config", "received", "dtype"))
BITS = 1e-6  # float32 sums of at most a few hundred numbers below 1
PADS = 3


def inputs(ids):
    """A row alone behind pads, and shorter by four with more pads: ids, positions, valid."""
    ids = np.stack([np.pad(ids, (PADS, 0)), np.pad(ids[4:], (PADS + 4, 0))]).astype(np.int32)
    valid = np.arange(ids.shape[1])[None] >= np.array([[PADS], [PADS + 4]])
    places = np.maximum(np.cumsum(valid, axis=1, dtype=np.int32) - 1, 0)
    return jnp.asarray(ids), jnp.asarray(places), jnp.asarray(valid)


def whole_map(params, config, ids, positions, valid, **more):
    """Hidden states, and the map of all columns with its column sums."""
    columns = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :], ids.shape)
    return states(params, config, ids, positions, valid, columns, True, **more)


@pytest.mark.parametrize(
    ("name", "arranged"),
    [
        ("llada-a", True),
        pytest.param("llada-a", False, marks=pytest.mark.slow),
        ("llada-b-gqa-bias-bf16", False),
        pytest.param("llada-b-gqa-bias-bf16", True, marks=pytest.mark.slow),
        pytest.param("llada-c-tied", False, marks=pytest.mark.slow),
        pytest.param("dream-a", False, marks=pytest.mark.slow),
        pytest.param("dream-b-tied-bf16", True, marks=pytest.mark.slow),
    ],
)
def test_maps_are_the_originals(name, arranged):
    config = parse_config(checkpoint.read_config(GOLDEN / name))
    params = converters.load_hub(GOLDEN / name, config)
    params = arrangement.arrange(params, config) if arranged else params
    with np.load(MAPS) as z:
        ids, want = z[f"{name}.ids"], z[f"{name}.mean"]
    given = inputs(ids)
    _, (rows, received) = whole_map(params, config, *given)
    real = slice(PADS, None)
    np.testing.assert_allclose(rows[0, real, real], want, atol=2e-5)
    np.testing.assert_allclose(received[0, real], want.sum(0), atol=1e-4)
    assert not np.any(rows[:, :, :PADS]) and not np.any(received[:, :PADS])
    np.testing.assert_allclose(np.sum(rows, axis=2), 1, atol=1e-5)
    # A window's rows are those of the whole map; hidden states are those of any pass.
    columns = jnp.array([[5, 6, 7], [9, 10, 11]], jnp.int32)
    hidden, (some, none) = states(params, config, *given, columns, False)
    assert none is None
    np.testing.assert_allclose(some[0], rows[0, 5:8], atol=BITS)
    np.testing.assert_allclose(some[1], rows[1, 9:12], atol=BITS)
    plain = transformer.hidden_states(params, config, *given)
    np.testing.assert_allclose(hidden, plain, rtol=1e-4, atol=1e-4)


def layers_alone(params, config, ids, positions, valid):
    """Every layer's queries and rotated keys, from the same blocks."""
    model, ops, x, rope = transformer.begin(params, config, ids, positions, jnp.float32)
    found = []

    def body(index, layer, x, outputs):
        def mix(q, k, v, rope, outputs=None):
            mixed, k = ops.attention(q, k, v, valid, rope)
            found.append((ops.rotated(q, rope.queries), k))
            return mixed, None

        return transformer.layer_block(ops, x, layer, config.head_dim, rope, mix)[0]

    fold(model, [body], x)
    return found


def softmax_map(q, k, valid):
    """[query, key]: plain float64 softmax of the scores, the mean over query heads."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = np.einsum("bshe,bthe->bhst", q, k) / q.shape[-1] ** 0.5
    scores = np.where(np.asarray(valid)[:, None, None, :], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).mean(1)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("depth", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_the_last_four_layers_are_averaged(depth):
    """Scanned and unrolled; the scan goes through the earlier layers without a map."""
    config = tiny_config("dream", n_layers=depth)
    params = tiny_params(config)
    given = inputs(np.arange(12))
    unrolled = arrangement.for_training(params, config)
    each = jax.jit(layers_alone, static_argnums=1)(unrolled, config, *given)
    want = np.mean([softmax_map(*layer, given[2]) for layer in each[-4:]], axis=0)
    for form in (params, arrangement.arrange(params, config)):
        _, (rows, received) = whole_map(form, config, *given)
        for b, first in enumerate((PADS, PADS + 4)):
            np.testing.assert_allclose(rows[b, first:], want[b, first:], atol=1e-5)
            np.testing.assert_allclose(received[b], want[b, first:].sum(0), atol=1e-4)


def test_the_map_follows_the_models_rule():
    config = tiny_config("sdar")  # blocks of 4
    given = inputs(np.arange(12))
    _, (rows, received) = whole_map(tiny_params(config), config, *given)
    block = np.where(given[2][0], np.asarray(given[1][0]) // 4, 99)
    hidden = block[None, :] > block[:, None]
    assert not np.any(rows[0][hidden]) and np.all(np.asarray(rows[0])[~hidden][PADS:] >= 0)
    np.testing.assert_allclose(np.sum(rows[0, PADS:], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(received[0], np.sum(rows[0, PADS:], axis=0), atol=1e-4)


def random_layer(b, t, h, g, e=8):
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((b, t, n, e)), jnp.float32) for n in (h, g))
    valid = jnp.asarray(np.arange(t)[None] >= np.arange(b)[:, None])
    columns = jnp.asarray(np.arange(7)[None] + 3 * np.arange(b)[:, None], jnp.int32)
    return q, k, valid, columns


@pytest.mark.parametrize("mask", ["row", "query"])
def test_turns_of_queries_change_nothing(mask):
    """Blocks of 16 of 37 queries: three, of which the last overlaps the one before."""
    q, k, valid, columns = random_layer(3, 37, 4, 2)
    near = np.abs(np.arange(37)[:, None] - np.arange(37)) < 9
    keys = valid if mask == "row" else valid[:, None, :] & near[None]
    some = jax.jit(attention_map, static_argnums=5)
    got = some(q, k, keys, columns, valid, 4 * 37 * 16)
    whole = some(q, k, keys, columns, valid)
    for one, other in zip(got, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=BITS, rtol=1e-5)
    np.testing.assert_allclose(some(q, k, keys, columns, None, 4 * 37 * 4)[0], got[0], atol=BITS)
    if mask == "row":
        want = softmax_map(q, k, valid)
        for b in range(3):
            np.testing.assert_allclose(got[0][b], want[b, columns[b]], atol=1e-5)
            np.testing.assert_allclose(got[1][b], want[b, b:].sum(0), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_rows_sums_are_the_same_bits_in_every_batch(rows):
    q, k, valid, columns = random_layer(7, 37, 4, 2)
    some = jax.jit(attention_map, static_argnums=5)
    whole = some(q, k, valid, columns, valid, 4 * 37 * 16)
    fewer = some(*(x[-rows:] for x in (q, k, valid, columns, valid)), 4 * 37 * 16)
    for one, other in zip(fewer, whole, strict=True):
        np.testing.assert_array_equal(one, other[-rows:])


def test_no_array_holds_the_map_of_all_heads():
    """Nor, of long rows, the whole map of one head."""
    b, t, h = 2, 512, 4
    q, k, valid, columns = random_layer(b, t, h, h)
    limit = 4 * t * 64  # 64 queries a turn
    text = jax.jit(attention_map, static_argnums=5).lower(q, k, valid, columns, valid, limit)
    sizes = [
        np.prod([int(n) for n in shape.split("x")])
        for shape in re.findall(r"tensor<((?:\d+x)*\d+)x(?:f32|i1|i32)>", text.as_text())
    ]
    assert max(sizes) == b * 64 * t < b * t * t
    assert text.compile().memory_analysis().temp_size_in_bytes < 4 * b * t * t


@pytest.mark.parametrize(
    "form", ["int8", pytest.param("split", marks=pytest.mark.slow), "bfloat16"]
)
def test_other_weights_and_dtypes(form):
    """int8 on the stacks, one GPU's split layers, bfloat16 compute: the same map, about."""
    config = tiny_config("dream")
    params, dtype, slack = tiny_params(config), jnp.float32, 1e-5
    given = inputs(np.arange(12))
    _, (want, sums) = whole_map(params, config, *given)
    if form == "int8":
        params, slack = quantize(params, config, "int8"), 0.05
    elif form == "split":
        params = split.split_layers(jax.tree.map(jnp.copy, params), config, force=True)
    else:
        params, dtype, slack = jax.tree.map(lambda x: x.astype(form), params), jnp.bfloat16, 0.1
    _, (rows, received) = whole_map(params, config, *given, dtype=dtype)
    assert rows.dtype == received.dtype == jnp.float32
    np.testing.assert_allclose(rows[:, PADS + 4 :], want[:, PADS + 4 :], atol=slack)
    np.testing.assert_allclose(received, sums, atol=12 * slack)
