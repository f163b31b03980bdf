"""Mixtures of experts: router and grouped product against a loop over tokens; meshes; int8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax.models.config import Experts
from leapjax.ops import experts as ops
from leapjax.ops.mesh import gather, split_residual
from leapjax.ops.weights import ExpertMatrices, Router
from leapjax.planning import collectives, hlo
from leapjax.sharding import MeshShape, placements, under_mesh

METHODS = {"dense": ops.dense, "groups": ops.in_groups, "tiles": ops.in_tiles}


def chosen_by(rule, weight, bias, x):
    """The rule for one token, read off the originals' text: experts and weights, float64."""
    logits = x.astype(np.float64) @ weight.astype(np.float64)
    score = np.exp(logits - logits.max()) if rule.score == "softmax" else 1 / (1 + np.exp(-logits))
    score = score / score.sum() if rule.score == "softmax" else score
    biased = score + (bias if rule.bias else 0)
    allowed = np.ones(rule.count, bool)
    if rule.groups > 1:
        parts = biased.reshape(rule.groups, -1)
        value = [sum(sorted(part)[-2:]) for part in parts]
        best = sorted(range(rule.groups), key=lambda g: (-value[g], g))[: rule.top_groups]
        allowed = np.repeat(np.isin(np.arange(rule.groups), best), parts.shape[1])
    order = sorted(np.flatnonzero(allowed), key=lambda e: (-biased[e], e))[: rule.chosen]
    weights = np.array([(biased if rule.bias == "weighs" else score)[e] for e in order])
    if rule.normalize:
        weights = weights / (weights.sum() + 1e-20)
    return order, weights * rule.scale


def layer(rule, d, seed=0, layers=None, dtype=np.float32):
    """A router and experts, alone or with a stack of layers; and the NumPy weights."""
    rng = np.random.default_rng(seed)
    lead = () if layers is None else (layers,)
    x, f = rule.count, rule.hidden_size
    gate, up, down = (
        (rng.normal(size=(*lead, x, *shape)) / d**0.5).astype(dtype)
        for shape in ((d, f), (d, f), (f, d))
    )
    router = rng.normal(size=(d, x)).astype(np.float32)
    bias = rng.normal(size=x).astype(np.float32) if rule.bias else None
    made = ExpertMatrices(
        *map(jnp.asarray, (gate, up, down)), layer=None if layers is None else jnp.int32(1)
    )
    own = [w if layers is None else w[1] for w in (gate, up, down)]
    made_router = Router(jnp.asarray(router), None if bias is None else jnp.asarray(bias), rule)
    return made_router, made, (router, bias, own)


def mixed(rule, weights, x):
    """The layer's output for tokens x (N, D), one token and one expert at a time, float64."""
    router, bias, (gate, up, down) = weights
    out = np.zeros(x.shape)
    for n, token in enumerate(x.astype(np.float64)):
        for e, w in zip(*chosen_by(rule, router, bias, token), strict=True):
            g, u = token @ gate[e].astype(np.float64), token @ up[e].astype(np.float64)
            out[n] += w * ((g / (1 + np.exp(-g)) * u) @ down[e].astype(np.float64))
    return out


rules = st.sampled_from(
    [
        Experts(8, 2, 6, normalize=True),
        Experts(12, 3, 4),
        Experts(5, 1, 4, score="sigmoid"),
        Experts(12, 3, 4, score="sigmoid", normalize=True, scale=2.5, bias="selects"),
        Experts(12, 4, 4, score="sigmoid", normalize=True, bias="selects", groups=4, top_groups=2),
        Experts(16, 4, 4, normalize=True, groups=8, top_groups=3),
        Experts(6, 6, 4, bias="weighs"),
    ]
)


@settings(max_examples=25)
@given(
    rules, st.integers(1, 40), st.sampled_from(sorted(METHODS)), st.booleans(), st.integers(0, 9)
)
def test_layer_is_a_loop_over_tokens_and_experts(rule, tokens, method, stacked, seed):
    router, experts, weights = layer(rule, 8, seed, 3 if stacked else None)
    x = np.random.default_rng(seed + 1).normal(size=(tokens, 8)).astype(np.float32)
    chosen, share = jax.jit(ops.route)(x, router)
    got = jax.jit(METHODS[method])(jnp.asarray(x), chosen, share, experts)
    np.testing.assert_allclose(got, mixed(rule, weights, x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_token_alone_is_token_in_any_company(method):
    """Bit for bit within a program: other tokens and the token's place change nothing."""
    rule = Experts(16, 4, 24, normalize=True)
    router, experts, _ = layer(rule, 32, layers=2)
    rng = np.random.default_rng(0)
    program = jax.jit(lambda x: METHODS[method](x, *ops.route(x, router), experts))
    token = rng.normal(size=32).astype(np.float32)
    answers = set()
    for _ in range(30):
        x = rng.normal(size=(64, 32)).astype(np.float32)
        if rng.random() < 0.5:  # crowd: many tokens with the same experts
            x = token + 0.1 * x
        place = rng.integers(64)
        x[place] = token
        answers.add(np.asarray(program(x))[place].tobytes())
    assert len(answers) == 1


@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(expert=2),
        MeshShape(tensor=2),
        MeshShape(expert=2, tensor=2),
        MeshShape(fsdp=2),
        MeshShape(fsdp=2, expert=2, tensor=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("rows", [2, 3])
def test_layer_on_a_mesh(shape, method, rows, monkeypatch):
    """Split experts, split inner width and split rows give the layer on one device."""
    rule = Experts(8, 2, 6, normalize=True)
    router, experts, weights = layer(rule, 8, layers=3)
    monkeypatch.setattr(ops, "product", METHODS[method])
    x = np.random.default_rng(5).normal(size=(rows, 7, 8)).astype(np.float32)
    place = placements(shape)[0]
    with under_mesh(place):
        got = jax.jit(ops.mix)(jnp.asarray(x), router, experts)
    want = mixed(rule, weights, x.reshape(-1, 8)).reshape(x.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_a_layer_is_summed_once_over_its_devices():
    """Each device keeps its part of the split residual stream, and sums that over `expert`."""
    router, experts, _ = layer(Experts(8, 2, 6), 8, layers=3)
    place = placements(MeshShape(expert=2, tensor=2))[0]

    def added(x, router, experts):
        x = split_residual(x)
        return split_residual(x + ops.mix(gather(x * 2), router, experts))

    with under_mesh(place):
        made = jax.jit(added).lower(jnp.ones((2, 7, 8)), router, experts).compile()
    found = collectives.read(hlo.parse(made.as_text()))
    sizes = {"fsdp": 1, "expert": 2, "tensor": 2}
    assert [(c.kind, c.axes(sizes), c.shapes[0][1]) for c in found] == [
        ("all-gather", ("tensor",), (2, 7, 8)),  # what the products need
        ("reduce-scatter", ("tensor",), (2, 7, 4)),
        ("all-reduce", ("expert",), (2, 7, 4)),
    ]


def test_router_breaks_ties_to_the_lowest_expert():
    rule = Experts(6, 2, 1, score="sigmoid", groups=3, top_groups=2)
    chosen, _ = ops.route(jnp.ones((1, 2)), Router(jnp.zeros((2, 6)), None, rule))
    assert chosen.tolist() == [[0, 1]]


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("stacked", [False, True])
def test_int8_experts_have_a_scale_for_each_of_their_outputs(method, stacked):
    rule = Experts(8, 2, 6, normalize=True)
    router, experts, (weight, bias, _) = layer(rule, 8, layers=3 if stacked else None)
    wide = [np.asarray(w) for w in (experts.gate, experts.up, experts.down)]
    scales = [np.abs(w).max(axis=-2) / np.float32(127) for w in wide]
    whole = [
        np.rint(w / s[..., None, :]).astype(np.int8) for w, s in zip(wide, scales, strict=True)
    ]
    small = experts.replace(
        **dict(zip(("gate", "up", "down"), map(jnp.asarray, whole), strict=True)),
        scales=tuple(map(jnp.asarray, scales)),
    )
    own = [w.astype(np.float32) * s[..., None, :] for w, s in zip(whole, scales, strict=True)]
    x = np.random.default_rng(3).normal(size=(20, 8)).astype(np.float32)
    chosen, share = ops.route(x, router)
    got = jax.jit(METHODS[method])(jnp.asarray(x), chosen, share, small)
    want = mixed(rule, (weight, bias, [w[1] for w in own] if stacked else own), x)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_the_load_loss_is_that_of_switch_transformers_and_levels_the_load():
    rule = Experts(count=4, chosen=2, hidden_size=3)
    router, _, (weight, _, _) = layer(rule, 6)
    x = np.random.default_rng(2).normal(size=(2, 16, 6)).astype(np.float32)
    x[..., 0] += 1.5  # a common direction, which one expert's score follows
    tokens = x.reshape(-1, 6).astype(np.float64)
    logits = np.exp(tokens @ weight)
    score, hits = logits / logits.sum(1, keepdims=True), np.zeros(4)
    for token in tokens:
        hits[chosen_by(rule, weight, None, token)[0]] += 1
    want = 4 * np.sum(hits / hits.sum() * score.mean(0))
    loss = jax.jit(jax.value_and_grad(ops.load_loss, argnums=1))
    np.testing.assert_allclose(loss(x, router)[0], want, rtol=1e-5)
    for _ in range(100):
        router = jax.tree.map(lambda w, g: w - 0.5 * g, router, loss(x, router)[1])
    assert want > 1.2 and float(loss(x, router)[0]) < 1.1


def test_balance_changes_the_gradient_and_not_the_output():
    rule = Experts(count=4, chosen=2, hidden_size=3)
    router, made, _ = layer(rule, 6)
    made = made.replace(training=True)
    x = jax.random.normal(jax.random.key(3), (2, 8, 6))

    def total(x, router, own):
        added = own * ops.load_loss(x, router) if own else 0.0
        return jnp.sum(ops.mix(x, router, made) ** 2) + added

    grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1)), static_argnums=2)
    got, gradient = grad(x, router.replace(balance=0.5), 0.0)
    np.testing.assert_allclose(got, grad(x, router, 0.0)[0], rtol=1e-6)
    wanted = grad(x, router, 0.5)[1]
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
