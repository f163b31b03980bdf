"""Our CPU kernels against float64 NumPy and XLA, over shapes that fit no tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax import native
from leapjax.ops.cache import Cached
from tests.models import transcription

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler for leapjax.native")
sizes = st.integers(1, 70)
few = settings(max_examples=20)  # every shape is compiled
small = {
    "rows": st.integers(1, 40),
    "depth": sizes,
    "columns": st.integers(1, 140),
    "seed": st.integers(0, 3),
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def product(x, w):
    """Of one matrix, without anything else."""
    (out,) = native.product(jnp.asarray(x), w if isinstance(w, native.Packed) else native.pack(w))
    return out


@few
@given(rows=sizes, depth=sizes, columns=st.integers(1, 140), seed=st.integers(0, 3))
def test_product(rows, depth, columns, seed):
    x, w = normal(seed, rows, depth), normal(seed + 9, depth, columns)
    got = product(x, w)
    wanted = x.astype(np.float64) @ w
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=4e-7 * depth)


@pytest.mark.parametrize("shape", [(3, 500, 77), (2, 1000, 513), (2, 300, 1024)])
def test_large_products_in_blocks(shape):
    x, w = normal(0, *shape), normal(1, shape[-1], 300)
    got = product(x, w)
    np.testing.assert_allclose(got, x.astype(np.float64) @ w, atol=2e-4)


def test_some_matrices_of_several_are_the_same_memory():
    c = native.panel()
    x, w = normal(0, 5, 7), normal(1, 7, 4 * c + 3)
    matrix = native.pack(w[:, :c], w[:, c : 3 * c], w[:, 3 * c :])
    whole = native.product(jnp.asarray(x), matrix)
    assert np.array_equal(jnp.concatenate(whole, axis=-1), product(x, w))
    part = matrix.part(1, 3).part(0, 1)
    assert part.panels is matrix.panels
    (got,) = native.product(jnp.asarray(x), part)
    assert np.array_equal(got, whole[1])
    with pytest.raises(ValueError, match="end where a panel"):
        native.pack(w, w)


def halves(x, cos, sin):
    """The rotary embedding, a head at a time, in float64."""
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@few
@given(**small, norm=st.sampled_from(["", "plain", "shifted"]), bias=..., add=...)
def test_what_comes_before_and_after_a_product(
    rows, depth, columns, norm, bias: bool, add: bool, seed
):
    x, w, g = normal(seed, rows, depth), normal(5, depth, columns), normal(6, depth)
    shift = normal(9, depth) * (norm == "shifted")
    b, more = normal(7, columns), normal(8, rows, columns)
    wide = x.astype(np.float64)
    if norm:
        wide = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.1) * g + shift
    wanted = wide @ w + b * bias + more * add
    g = np.stack([g, shift]) if norm == "shifted" else g
    given = {"norm": g if norm else None, "bias": b if bias else None, "add": more if add else None}
    given = {name: None if a is None else jnp.asarray(a) for name, a in given.items()}
    (got,) = native.product(jnp.asarray(x), native.pack(w), eps=0.1, **given)
    np.testing.assert_allclose(got, wanted, atol=4e-6 * depth)
    if rows > 1:  # alone as among others, bit for bit
        given |= {"add": None if given["add"] is None else given["add"][-1:]}
        (alone,) = native.product(jnp.asarray(x[-1:]), native.pack(w), eps=0.1, **given)
        assert np.array_equal(alone, got[-1:])


@few
@given(**small, bias=st.booleans())
def test_gated(rows, depth, columns, bias, seed):
    x, gate, up = (
        normal(seed + i, *s) for i, s in enumerate([(rows, depth)] + 2 * [(depth, columns)])
    )
    b = normal(7, 2 * columns)
    x[0] *= 100  # silu far from 0
    matrix = native.pack(gate, up, gated=True)
    (got,) = native.product(jnp.asarray(x), matrix, bias=jnp.asarray(b) if bias else None)
    a, other = np.asarray(product(x, gate)), np.asarray(product(x, up))
    if bias:
        a, other = a + b[:columns], other + b[columns:]
    a = a.astype(np.float64)
    wanted = a * np.exp(-np.logaddexp(0, -a)) * other  # tanh loses the tail
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-25)


@few
@given(
    rows=st.integers(1, 3),
    queries=st.integers(1, 30),
    depth=sizes,
    groups=st.integers(1, 3),
    share=st.integers(1, 3),
    panels=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 3),
)
def test_rotated(rows, queries, depth, groups, share, panels, bias, seed):
    width = panels * native.panel()
    heads = (groups, groups, groups * share)  # of values, keys, queries
    x = normal(seed, rows, queries, depth)
    matrices = [normal(seed + i, depth, n * width) for i, n in enumerate(heads)]
    b = normal(9, sum(heads) * width)
    cos, sin = normal(7, rows, queries, 1, width // 2), normal(8, rows, queries, 1, width // 2)
    matrix = native.pack(*matrices, heads=(0, width, width))
    shift = jnp.asarray(b) if bias else None
    got = native.product(
        jnp.asarray(x), matrix, bias=shift, rope=(jnp.asarray(cos), jnp.asarray(sin))
    )
    wanted = np.split(
        x.astype(np.float64) @ np.concatenate(matrices, axis=-1) + b * bias,
        np.cumsum(heads)[:2] * width,
        axis=-1,
    )
    for i, n in enumerate(heads):
        y = wanted[i].reshape(rows, queries, n, width)
        y = halves(y, cos, sin) if i else y
        np.testing.assert_allclose(got[i], y.reshape(got[i].shape), atol=1e-5 * depth)
    # One of them alone is the same.
    (again,) = native.product(
        jnp.asarray(x),
        matrix.part(2, 3),
        bias=None if shift is None else shift[-heads[2] * width :],
        rope=(jnp.asarray(cos), jnp.asarray(sin)),
    )
    assert np.array_equal(again, got[2])
    with pytest.raises(ValueError, match="RoPE"):
        native.product(jnp.asarray(x), matrix)


@few
@given(rows=st.integers(2, 300), depth=sizes, seed=st.integers(0, 3))
def test_a_row_is_the_same_alone(rows, depth, seed):
    x, matrix = normal(seed, rows, depth), native.pack(normal(seed + 9, depth, 50))
    whole = product(x, matrix)
    for i in (0, rows // 2, rows - 1):
        assert np.array_equal(whole[i : i + 1], product(x[i : i + 1], matrix))


@few
@given(
    rows=st.integers(1, 3),
    queries=st.integers(1, 70),
    more=st.integers(0, 40),
    groups=st.integers(1, 3),
    share=st.integers(1, 3),
    width=st.sampled_from([2, 4, 16, 24, 32, 64, 100]),
    seed=st.integers(0, 3),
)
def test_attention(rows, queries, more, groups, share, width, seed):
    keys = queries + more
    q = 3 * normal(seed, rows, queries, groups * share, width)
    k, v = normal(seed + 9, 2, rows, keys, groups, width)
    # Pads on the left, up to rows of nothing else.
    pads = np.random.default_rng(seed).integers(0, keys + 1, rows)
    valid = jnp.asarray(np.arange(keys)[None] >= pads[:, None])
    got = native.attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), valid)
    for b in range(rows):
        # A row of pads alone weighs all of them alike.
        every = pads[b] == keys
        both = (x[b, 0 if every else pads[b] :] for x in (k, v))
        wanted = transcription.attention(q[b] * (not every), *both)
        np.testing.assert_allclose(got[b], wanted, atol=2e-5)


@few
@given(
    rows=st.integers(1, 3),
    queries=st.integers(1, 70),
    stored=st.integers(1, 90),
    groups=st.integers(1, 3),
    share=st.integers(1, 3),
    width=st.sampled_from([2, 16, 24, 32, 64, 100]),
    seed=st.integers(0, 3),
)
def test_attention_to_cached_keys_too(rows, queries, stored, groups, share, width, seed):
    q = 3 * normal(seed, rows, queries, groups * share, width)
    k, v = normal(seed + 1, 2, rows, queries, groups, width)
    keys, values = normal(seed + 9, 2, 3, rows, groups, stored, width)
    rng = np.random.default_rng(seed)
    own = rng.random((rows, queries)) < rng.choice([0.0, 0.5, 1.0])
    others = rng.random((rows, stored)) < rng.choice([0.0, 0.9, 1.0])
    got = native.attention(*map(jnp.asarray, (q, k, v, own)), Cached(keys, values, others, 1))
    for b in range(rows):
        every = not (own[b].any() or others[b].any())  # no key: all of them alike
        both = (
            np.concatenate(
                [old[1, b].transpose(1, 0, 2)[others[b] | every], new[b][own[b] | every]]
            )
            for old, new in ((keys, k), (values, v))
        )
        wanted = transcription.attention(q[b] * (not every), *both)
        np.testing.assert_allclose(got[b], wanted, atol=2e-5)


def test_pads_change_nothing_of_attention():
    q, k, v = normal(0, 1, 9, 2, 32), normal(1, 1, 40, 2, 32), normal(2, 1, 40, 2, 32)
    plain = native.attention(q, k, v, jnp.ones((1, 40), bool))
    pad = [(0, 0), (24, 0), (0, 0), (0, 0)]
    padded = native.attention(
        q, np.pad(k, pad, constant_values=7), np.pad(v, pad, constant_values=9),
        jnp.arange(64)[None] >= 24,
    )  # fmt: skip
    assert np.array_equal(plain, padded)


@few
@given(**small, barred=st.integers(0, 3))
def test_summary(rows, depth, columns, barred, seed):
    x, w, bias = normal(seed, rows, depth), normal(seed + 9, depth, columns), normal(3, columns)
    bias[np.random.default_rng(seed).integers(0, columns, barred)] = -np.inf
    top, place, total, _ = native.summary(jnp.asarray(x), native.pack(w), jnp.asarray(bias), 0.7)
    logits = 0.7 * np.asarray(product(x, w)) + bias
    if np.isneginf(bias).all():
        assert np.isneginf(top).all() and not np.asarray(total).any()
        return
    np.testing.assert_allclose(top, logits.max(axis=-1), rtol=1e-5, atol=1e-5)
    # Rounding may decide between neighbours; what is chosen is as good as the best.
    chosen = np.take_along_axis(logits, np.asarray(place)[:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(chosen, logits.max(axis=-1), rtol=1e-5, atol=1e-5)
    wanted = np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
    np.testing.assert_allclose(total, wanted, rtol=2e-5)


def test_the_first_of_equals():
    matrix = native.pack(np.zeros((8, 100), np.float32))
    bias = jnp.zeros(100).at[jnp.arange(5)].set(-jnp.inf)
    top, place, total, _ = native.summary(jnp.ones((13, 8)), matrix, bias, 1.0)
    assert (np.asarray(top) == 0).all() and (np.asarray(place) == 5).all()
    np.testing.assert_allclose(total, 95, rtol=1e-6)


def test_summaries_of_many_panels_and_rows():
    c = native.panel()
    x, w, bias = normal(0, 400, 30), normal(1, 30, 19 * c + 3), normal(2, 19 * c + 3)
    top, place, total, _ = native.summary(jnp.asarray(x), native.pack(w), jnp.asarray(bias), 0.7)
    logits = 0.7 * (x.astype(np.float64) @ w) + bias
    np.testing.assert_allclose(top, logits.max(axis=-1), rtol=1e-5)
    assert (np.asarray(place) == logits.argmax(axis=-1)).mean() > 0.99  # near-ties aside
    wanted = np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
    np.testing.assert_allclose(total, wanted, rtol=2e-5)
    # Equals in several groups of panels: the first; a row of NaNs: some column.
    zeros, some = native.pack(np.zeros((30, 19 * c + 3), np.float32)), jnp.asarray(x[:2])
    bias = jnp.zeros(19 * c + 3).at[: c + 5].set(-jnp.inf)
    assert (np.asarray(native.summary(some, zeros, bias, 1.0)[1]) == c + 5).all()
    _, place, *_ = native.summary(some * jnp.nan, zeros, bias, 1.0)
    assert (np.asarray(place) < 19 * c + 3).all()


def test_a_summary_of_the_norm_and_columns_apart():
    """Norm with a bias; columns apart in several groups of panels; a row alone, bit for bit."""
    c = native.panel()
    columns, x, g, b = 19 * c + 3, normal(0, 70, 30), normal(1, 30), normal(2, 30)
    w, bias, apart = normal(3, 30, columns), normal(4, columns), [0, 5, 9 * c, columns - 1]
    norm = {"norm": jnp.stack([jnp.asarray(g), jnp.asarray(b)]), "eps": 0.1}
    matrix = native.pack(w)
    got = native.summary(jnp.asarray(x), matrix, jnp.asarray(bias), 0.7, apart=apart, **norm)
    wide = x.astype(np.float64)
    wide = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.1) * g + b
    logits = 0.7 * (wide @ w) + bias
    np.testing.assert_allclose(got[3], logits[:, apart], rtol=1e-4, atol=1e-4)
    logits[:, apart] = -np.inf
    np.testing.assert_allclose(got[0], logits.max(axis=-1), rtol=1e-5)
    wanted = np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
    np.testing.assert_allclose(got[2], wanted, rtol=2e-5)
    some = native.summary(jnp.asarray(x[9:10]), matrix, jnp.asarray(bias), 0.7, apart=apart, **norm)
    for alone, all_ in zip(some, got, strict=True):
        assert np.array_equal(alone, np.asarray(all_)[9:10])


def test_blocks_of_rows_with_all_that_goes_with_a_product():
    c = native.panel()
    x, g = normal(0, 2, 200, 40), normal(1, 40)
    wide = x.astype(np.float64)
    wide = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.1) * g
    w, b, more = normal(2, 40, 3 * c + 5), normal(3, 3 * c + 5), normal(4, 2, 200, 3 * c + 5)
    norm = {"norm": jnp.asarray(g), "eps": 0.1}
    (got,) = native.product(
        jnp.asarray(x), native.pack(w), bias=jnp.asarray(b), add=jnp.asarray(more), **norm
    )
    np.testing.assert_allclose(got, wide @ w + b + more, atol=2e-4)
    up = normal(5, 40, 3 * c + 5)
    pair = native.pack(w, up, gated=True)
    (got,) = native.product(jnp.asarray(x), pair, **norm)
    (alone,) = native.product(jnp.asarray(x[1:, 150:151]), pair, **norm)  # bit for bit
    assert np.array_equal(alone, got[1:, 150:151])
    gate = wide @ w
    np.testing.assert_allclose(got, gate / (1 + np.exp(-gate)) * (wide @ up), atol=1e-3)
    turn = normal(6, 2, 200, 1, c), normal(7, 2, 200, 1, c)
    turned = native.pack(w[:, :c], w[:, c : 3 * c], heads=(0, 2 * c))
    got = native.product(jnp.asarray(x), turned, rope=tuple(map(jnp.asarray, turn)), **norm)
    np.testing.assert_allclose(got[0], wide @ w[:, :c], atol=2e-4)
    wanted = halves((wide @ w[:, c : 3 * c])[:, :, None], *turn)[:, :, 0]
    np.testing.assert_allclose(got[1], wanted, atol=5e-4)
    one = [jnp.asarray(part[1:, 150:151]) for part in (x, *turn)]
    alone = native.product(one[0], turned, rope=tuple(one[1:]), **norm)
    assert np.array_equal(alone[1], got[1][1:, 150:151])


def test_wrong_shapes_are_refused():
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes do not agree"):
        product(jnp.ones((2, 5)), normal(0, 6, 3)).block_until_ready()
    x, matrix = jnp.ones((2, 6)), native.pack(normal(0, 6, 3))
    for wrong in ({"norm": jnp.ones(5)}, {"bias": jnp.ones(4)}, {"add": jnp.ones((1, 3))}):
        with pytest.raises(jax.errors.JaxRuntimeError, match="shapes do not agree"):
            jax.block_until_ready(native.product(x, matrix, **wrong))


def test_infinities_and_nans_pass_through():
    x = jnp.asarray([[1.0, np.inf], [np.nan, 1.0]])
    got = product(x, np.ones((2, 3), np.float32))
    assert np.isposinf(got[0]).all() and np.isnan(got[1]).all()
