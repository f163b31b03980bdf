"""The kernel of expert layers against float64 NumPy, a token and an expert at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax import native
from leapjax.models.config import Experts
from leapjax.native import packed
from leapjax.ops import experts as ops
from leapjax.ops.weights import Router

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler for leapjax.native")


def layer(seed, rows, depth, width, count, some):
    """Tokens, their experts (distinct, in no order) and weights, and the experts' matrices."""
    rng = np.random.default_rng(seed)
    shapes = (rows, depth), (rows, some), *2 * [(count, depth, width)], (count, width, depth)
    x, weights, *matrices = (rng.standard_normal(s, np.float32) for s in shapes)
    chosen = np.stack([rng.permutation(count)[:some] for _ in range(rows)]).astype(np.int32)
    return x, chosen, weights, matrices


def by_token(x, chosen, weights, matrices):
    """Each token's weighted sum of its experts."""
    gate, up, down = (m.astype(np.float64) for m in matrices)
    out = np.zeros(x.shape)
    for token, row in enumerate(x.astype(np.float64)):
        for expert, weight in zip(chosen[token], weights[token], strict=True):
            a = row @ gate[expert]
            inner = a * np.exp(-np.logaddexp(0, -a)) * (row @ up[expert])
            out[token] += weight * (inner @ down[expert])
    return out


def experts(x, chosen, weights, matrices, add=None):
    if not isinstance(matrices, native.PackedExperts):
        matrices = native.pack_experts(*matrices)
    return np.asarray(native.experts(*map(jnp.asarray, (x, chosen, weights)), matrices, add=add))


@settings(max_examples=12)  # every shape is compiled
@given(
    rows=st.integers(1, 40),
    depth=st.integers(1, 70),
    width=st.integers(1, 70),
    count=st.integers(1, 9),
    some=st.integers(1, 4),
    add=st.booleans(),
    seed=st.integers(0, 3),
)
def test_weighted_sum_of_experts(rows, depth, width, count, some, add, seed):
    x, chosen, weights, matrices = layer(seed, rows, depth, width, count, min(some, count))
    x[0] *= 100  # silu far from 0
    more = np.random.default_rng(9).standard_normal(x.shape, np.float32)
    got = experts(x, chosen, weights, matrices, jnp.asarray(more) if add else None)
    wanted = by_token(x, chosen, weights, matrices) + add * more
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())


def test_crowded_experts():
    """One expert with more rows than a block holds, and rows a page apart."""
    x, chosen, weights, matrices = layer(0, 500, 1024, 48, 5, 2)
    chosen[:] = [3, 1]
    wanted = by_token(x, chosen, weights, matrices)
    got = experts(x, chosen, weights, matrices)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_token_keeps_its_bits(monkeypatch):
    """Alone, among others, in another order, and with less room than all tokens need."""
    x, chosen, weights, matrices = layer(1, 60, 65, 40, 6, 3)
    made = native.pack_experts(*matrices)
    whole = experts(x, chosen, weights, made)
    for some in ([0], [59], [5, 40], [*range(50, 57)], [*range(59, -1, -1)]):
        assert np.array_equal(experts(x[some], chosen[some], weights[some], made), whole[some])
    assert len(jax.tree.leaves(made)) == 2
    monkeypatch.setattr(packed, "EXPERT_FLOATS", 13 * 3 * (65 + 40))
    assert np.array_equal(experts(x, chosen, weights, made), whole)


def test_sums_run_in_the_tokens_own_order():
    x, chosen, _, matrices = layer(2, 1, 8, 8, 3, 3)
    x, chosen = np.repeat(x, 2, axis=0), np.int32([[0, 1, 2], [2, 1, 0]])
    same = [m[:1].repeat(3, axis=0) for m in matrices]  # three experts that are equal
    weights = np.float32([[2**30, -(2**30), 1]] * 2)  # any other order loses the last
    got = experts(x, chosen, weights, same)
    last = by_token(x, chosen, np.float32([[0, 0, 1]] * 2), same)
    np.testing.assert_allclose(got, last, rtol=1e-5)


def test_other_experts_are_not_read():
    x, chosen, weights, matrices = layer(3, 7, 33, 20, 6, 2)
    chosen[chosen == 4] = 5
    wanted = experts(x, chosen, weights, matrices)
    for matrix in matrices:
        matrix[4] = np.nan
    assert np.array_equal(experts(x, chosen, weights, matrices), wanted)


@pytest.mark.parametrize("number", [-1, 6])
def test_no_such_expert(number):
    x, chosen, weights, matrices = layer(4, 3, 8, 8, 6, 2)
    chosen[1, 1] = number
    with pytest.raises(Exception, match="no such expert"):
        experts(x, chosen, weights, matrices)


def test_no_tokens():
    x, chosen, weights, matrices = layer(5, 3, 8, 8, 6, 2)
    assert experts(x[:0], chosen[:0], weights[:0], matrices).shape == (0, 8)


RULES = {
    "softmax": Experts(12, 3, 1),
    "normalized": Experts(64, 8, 1, normalize=True, scale=2.5),
    "weighs": Experts(20, 4, 1, bias="weighs"),
    "sigmoid": Experts(17, 1, 1, score="sigmoid", bias="selects", scale=0.5),
    "groups": Experts(
        24, 5, 1, score="sigmoid", normalize=True, bias="selects", groups=6, top_groups=2
    ),
    "all": Experts(3, 3, 1, normalize=True),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_route_is_that_of_xla(rule):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((300, rule.count), np.float32) * 3
    logits[:40] = np.round(logits[:40])  # ties
    logits[5] = [(-200, 200)[i % 2] for i in range(rule.count)]
    bias = rng.choice(np.float32([-0.5, 0, 0.25]), rule.count) if rule.bias else None
    router = Router(jnp.eye(rule.count), None if bias is None else jnp.asarray(bias), rule)
    chosen, weights = ops.route(jnp.asarray(logits), router)  # the product with one is exact
    options = {"score": rule.score, "weighs": rule.bias == "weighs", "normalize": rule.normalize}
    options |= {"scale": rule.scale, "groups": rule.groups, "top_groups": rule.top_groups}
    route = functools.partial(native.route, bias=router.bias, count=rule.chosen, **options)
    got, share = route(jnp.asarray(logits))
    assert np.array_equal(got, chosen)
    np.testing.assert_allclose(share, weights, rtol=2e-6, atol=1e-30)
    for some in (slice(0, 1), slice(7, 9), slice(40, 53)):  # alone as among others, bit for bit
        for part, whole in zip(route(jnp.asarray(logits[some])), (got, share), strict=True):
            assert np.array_equal(part, whole[some])


def test_route_of_nans_is_of_experts():
    logits = jnp.full((2, 7), jnp.nan).at[1, 3].set(1.0)
    chosen, weights = native.route(logits, None, 3)
    assert all(len(set(row)) == 3 and set(row) <= set(range(7)) for row in chosen.tolist())
    assert np.isnan(weights).all()


def test_norm_comes_first():
    x, chosen, weights, matrices = layer(6, 9, 37, 11, 4, 2)
    norm = np.random.default_rng(1).standard_normal((2, 37), np.float32)
    wide = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * norm[0] + norm[1]
    made = native.pack_experts(*matrices)
    operands = map(jnp.asarray, (x, chosen, weights))
    got = native.experts(*operands, made, norm=jnp.asarray(norm), eps=0.1)
    np.testing.assert_allclose(got, experts(wide, chosen, weights, matrices), rtol=1e-3, atol=1e-4)
