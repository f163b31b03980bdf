"""What a compiled pass is made of: products, loops, large arrays, bytes. No clocks.

The counts are exact on purpose: who changes the pass sees here what it costs.
"""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from leapjax import native
from leapjax.config import DecodeConfig
from leapjax.decoding import program_for, run_jit
from leapjax.models import param_shapes
from leapjax.ops import arrangement
from leapjax.serve.lowering import compile_run, empty_state
from leapjax.serve.memory import needed_bytes
from leapjax.testing import tiny_config, tiny_params

B, W, T, V = 4, 16, 48, 1000
LAYER = 9  # products: q, k, v, scores, mixed, o, gate, up, down


def program(cache, family="llada", length=T, gen_length=32, **options):
    config = tiny_config(family, vocab_size=V)
    job = DecodeConfig(gen_length=gen_length, block_length=W, cache=cache, **options)
    return program_for(
        job, config, length=length, dtype="float32", eot_token_id=None, refresh_group=1
    )


def shapes(config):
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        param_shapes(config),
        is_leaf=lambda x: isinstance(x, tuple),
    )


def lowered(params, made):
    state = jax.eval_shape(lambda: empty_state(made, B))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return run_jit.lower(params, state, count, count, program=made).as_text()


def operations(text):
    return collections.Counter(re.findall(r"stablehlo\.(\w+)", text))


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize(
    ("cache", "products", "loops"),
    [
        # The looped layers, the last one (on the window) and the head; the decode, its layers.
        ("none", 2 * LAYER + 1, 2),
        # A window's forward with two more products for its fresh keys, a refresh's, the head; the
        # decode, the turns of a refresh, two of layers.
        ("prefix", 3 * LAYER + 2 + 1, 4),
        ("dual", 3 * LAYER + 2 + 1, 4),
    ],
)
def test_products_and_loops(family, cache, products, loops):
    made = program(cache, family)
    text = lowered(shapes(made.model), made)
    found = operations(text)
    assert found["dot_general"] == products
    assert found["while"] == loops
    assert "f64" not in text


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_no_array_is_as_large_as_all_logits(monkeypatch, cache):
    monkeypatch.setattr(arrangement, "PIECE", 256)
    made = program(cache)
    params = arrangement.arrange(tiny_params(made.model), made.model)
    text = lowered(params, made)
    # A window's two layers have two products more each, for their fresh keys.
    assert operations(text)["dot_general"] == (2 * LAYER if cache == "none" else 4 * LAYER + 4) + 4
    assert f"tensor<{B}x{W}x{V}xf32>" not in text
    assert f"tensor<{B}x{W}x256xf32>" in text


@pytest.mark.skipif(not native.available(), reason="no C++ compiler for leapjax.native")
@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("fused", [False, True])
def test_with_packed_matrices_a_pass_is_kernels(cache, fused):
    made = program(cache)
    if fused:
        model = dataclasses.replace(made.model, head_dim=native.panel())
        made = dataclasses.replace(made, model=model)
    text = lowered(arrangement.arrange(tiny_params(made.model), made.model), made)
    found = collections.Counter(re.findall(r"custom_call @leapjax_(\w+)", text))
    layers, passes = made.model.n_layers, 1 if cache == "none" else 2
    # Values, keys and queries, where these heads don't end with panels; o, gate and up, down. The
    # last layer of a full pass has queries of the window alone.
    model, panel = made.model, native.panel()
    apart = any(n * model.head_dim % panel for n in (model.n_heads, model.n_kv_heads))
    products = 6 * layers * passes if apart else 4 * layers * passes + 1
    assert found == {"product": products, "attention": layers * passes, "summary": 1}
    # Norms, gates and rotations are the kernels' own, but for the tables.
    assert operations(text)["rsqrt"] == 0 and "logistic" not in text
    # A rotation outside puts the halves of keys and queries together.
    turned = 2 * layers * passes if made.model.head_dim % panel else 0
    assert operations(text)["concatenate"] == turned
    assert operations(text)["dot_general"] == 0  # the logits of the special ids too
    for columns in (V, -(-V // native.panel()) * native.panel()):
        assert f"tensor<{B}x{W}x{columns}xf32>" not in text
    # The cache is read where it is: nothing slices a layer's keys off.
    one = rf"dynamic_slice.*-> tensor<1x{B}x{made.model.n_kv_heads}x{T}x{made.model.head_dim}xf32>"
    assert not re.search(one, text)


def test_grouped_heads_share_their_keys():
    made = program("none", "dream")
    model = made.model
    assert model.n_kv_heads < model.n_heads
    text = lowered(shapes(model), made)
    for repeated in (
        f"tensor<{B}x{T}x{model.n_heads}x{model.n_heads // model.n_kv_heads}x{model.head_dim}xf32>",
        f"tensor<{B}x{model.n_heads}x{model.head_dim}x{T}xf32>",
    ):
        assert repeated not in text
    assert f"tensor<{B}x{model.n_kv_heads}x{model.head_dim}x{T}xf32>" in text


def test_memory_beside_the_weights_is_the_activations_and_the_cache():
    made = program("dual", length=256, gen_length=128)
    params = tiny_params(made.model)
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    model = made.model
    cache = 2 * 4 * model.n_layers * B * 256 * model.n_kv_heads * model.head_dim
    logits = 4 * B * W * V
    scores = 4 * model.n_heads * 256 * 256  # of the one row that refreshes
    rest = needed_bytes([compile_run(params, made, B)]) - weights
    assert rest < cache + 5 * logits + 5 * scores
