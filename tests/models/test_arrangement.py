"""Weights as a CPU program takes them: the same numbers, no copy, no widened copy of layers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax import bridge
from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.ops import arrangement
from leapjax.ops.split import split_layers
from leapjax.serve.lane import Replica
from leapjax.serve.lowering import compile_run
from leapjax.serve.memory import needed_bytes
from leapjax.testing import tiny_config, tiny_params

# How packed matrices are handed over: tests/native.
pytestmark = pytest.mark.usefixtures("without_kernels")


@pytest.fixture
def at_any_size(monkeypatch):
    monkeypatch.setattr(arrangement, "WORDS_FROM_BYTES", 0)


def test_small_models_are_widened_once_if_at_all():
    params = tiny_params(config := tiny_config(), dtype=jnp.bfloat16)
    kept = arrangement.arrange(params, config, "bfloat16")
    assert kept.runs[0].layers[0]["o"].weights[0].dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(arrangement.arrange(params, config, "float32")):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_comes_in_pieces_of_the_same_memory(monkeypatch, tied):
    monkeypatch.setattr(arrangement, "PIECE", 16)
    params = tiny_params(config := tiny_config(tie_embeddings=tied))
    table = params["embed" if tied else "head"]
    pieces = arrangement.arrange(params, config).head.pieces
    assert [p.shape[0] for p in pieces] == [16, 16, 8]
    assert np.array_equal(np.concatenate(pieces), table)
    assert pieces[0].unsafe_buffer_pointer() == table.unsafe_buffer_pointer()


def test_few_layers_come_one_by_one_too():
    params = tiny_params(config := tiny_config())
    views = [
        layer["gate_up"].weights[1] for layer in arrangement.arrange(params, config).runs[0].layers
    ]
    base = params["layers"]["up"]
    assert all(map(np.array_equal, views, base))
    step = views[1].unsafe_buffer_pointer() - views[0].unsafe_buffer_pointer()
    assert views[0].unsafe_buffer_pointer() == base.unsafe_buffer_pointer()
    assert step == base[0].nbytes


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_layers_one_by_one_decode_alike(monkeypatch, cache):
    params = tiny_params(config := tiny_config())
    job = DecodeConfig(gen_length=16, block_length=8, cache=cache)
    prompts, ids = [[1, 2, 3], [4, 5, 6, 7, 8]], np.array([[1, 2, 3, 4]])
    views = leapjax.LM(params, config, codec=None)
    got, logits = views.generate(prompts, job, batch_size=2), views.logits(ids)
    monkeypatch.setattr(arrangement, "UNROLLED", 0)
    stack = leapjax.LM(params, config, codec=None)
    np.testing.assert_allclose(logits, stack.logits(ids), rtol=1e-4, atol=1e-5)
    for a, b in zip(got, stack.generate(prompts, job, batch_size=2), strict=True):
        assert a.output_ids == b.output_ids and a.commit_step == b.commit_step


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_programs_slice_no_layer_off_the_stack(cache):
    lm = leapjax.LM(tiny_params(config := tiny_config()), config, codec=None)
    job = DecodeConfig(gen_length=8, block_length=4, cache=cache)
    engine = lm.engine(2)
    program = engine.program(lm.request([1, 2, 3], job))
    shape = "f32[" + ",".join(map(str, lm.params["layers"]["up"].shape)) + "]"
    assert shape not in compile_run(engine.replicas[0].params, program, 2).as_text()
    assert shape in compile_run(lm.params, program, 2).as_text()


def test_float32_stays_float32(at_any_size):
    arranged = arrangement.arrange(tiny_params(tiny_config()), tiny_config())
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(arranged))


def test_words_copy_nothing(at_any_size):
    params = tiny_params(config := tiny_config(), dtype=jnp.bfloat16)
    arranged = arrangement.arrange(params, config)
    layers = arranged.runs[0].layers
    for words, leaf in (
        (layers["vkq"].weights[2], params["layers"]["q"]),
        (layers["down"].weights[0], params["layers"]["down"]),
        (layers["attn_norm"].weight, params["layers"]["attn_norm"]),
    ):
        assert words.dtype == jnp.uint16
        assert words.unsafe_buffer_pointer() == leaf.unsafe_buffer_pointer()


def test_spread_weights_keep_their_sharding(at_any_size):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = tiny_params(config := tiny_config(), dtype=jnp.bfloat16)
    params = jax.tree.map(lambda x: jax.device_put(x, place if x.ndim > 2 else None), params)
    up = arrangement.arrange(params, config).runs[0].layers["gate_up"].weights[1]
    assert up is params["layers"]["up"] and up.sharding == place


# Every pair of two of the three quickly, the rest of the triples slowly.
TRIPLES = list(itertools.product(["none", "dual"], ["llada", "dream"], ["float32", "bfloat16"]))
PAIRS = [
    c for c in TRIPLES if ((c[0] == "dual") + (c[1] == "dream") + (c[2] == "bfloat16")) % 2 == 0
]
TRIPLES += [
    (cache, family, dtype)
    for family, cache in (("llada_moe", "dual"), ("llada2", "block"), ("sdar_moe", "none"))
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(
    ("cache", "family", "dtype"),
    [pytest.param(*c, marks=() if c in PAIRS else pytest.mark.slow) for c in TRIPLES],
)
def test_same_decode(monkeypatch, family, cache, dtype):
    monkeypatch.setattr(arrangement, "UNROLLED", 0)  # other products, other rounding
    config = tiny_config(family, tie_embeddings=family == "dream")
    params = tiny_params(config, dtype=jnp.bfloat16)
    job = DecodeConfig(gen_length=8, block_length=4, cache=cache)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    ids = np.array([[1, 2, 3, 4]])
    plain = leapjax.LM(params, config, codec=None, dtype=dtype)
    wanted, logits = plain.generate(prompts, job, batch_size=2), plain.logits(ids)
    monkeypatch.setattr(arrangement, "WORDS_FROM_BYTES", 0)
    packed = leapjax.LM(params, config, codec=None, dtype=dtype)
    assert np.array_equal(packed.logits(ids), logits)
    for a, b in zip(wanted, packed.generate(prompts, job, batch_size=2), strict=True):
        assert a.output_ids == b.output_ids and a.steps == b.steps


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_layers_are_widened_one_at_a_time(at_any_size, cache):
    config = tiny_config(n_layers=16, d_model=128, mlp_hidden_size=256, head_dim=32)
    params = tiny_params(config, dtype=jnp.bfloat16)
    layers = sum(x.size for x in jax.tree.leaves(params["layers"]))
    program = program_for(
        DecodeConfig(gen_length=8, block_length=8, cache=cache),
        config,
        length=16,
        dtype="float32",
        eot_token_id=None,
    )
    wide = needed_bytes([compile_run(params, program, 1)])
    packed = needed_bytes([compile_run(arrangement.arrange(params, config), program, 1)])
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    # Plain: beside the weights, 4 bytes for each of the layers' matrix entries.
    assert wide > weights + 3.9 * layers
    assert packed < weights + 0.9 * layers


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        ("dream", True),
        ("llada2", False),
        pytest.param("llada_moe", True, marks=pytest.mark.slow),
        pytest.param("sdar_moe", False, marks=pytest.mark.slow),
    ],
)
def test_a_model_split_for_a_gpu_has_canonical_parameters(family, tied):
    """As `leapjax.load` leaves it on one GPU: it is computed with, hashed and given to NNX."""
    params = tiny_params(config := tiny_config(family, tie_embeddings=tied))
    plain = leapjax.LM(params, config, codec=None)
    apart = split_layers(jax.tree.map(jnp.copy, params), config, force=True)
    lm = leapjax.LM(None, config, None, replicas=[Replica(apart)])
    assert lm.replicas[0].params is apart
    for got, want in zip(jax.tree.leaves(lm.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(got, want)
    assert jax.tree.structure(lm.params) == jax.tree.structure(params)
    assert lm.model_hash == plain.model_hash
    ids = np.array([[1, 2, 3, 4]])
    np.testing.assert_allclose(lm.logits(ids), plain.logits(ids), rtol=1e-4, atol=1e-5)
    again = bridge.from_nnx(bridge.to_nnx(lm), like=lm)
    np.testing.assert_allclose(again.logits(ids), plain.logits(ids), rtol=1e-4, atol=1e-5)
    counted = lm.with_token_counts(np.arange(config.vocab_size))
    assert counted.replicas[0].params.log_frequency is not None
    assert counted.params.keys() == params.keys() | {"log_frequency"}
