"""Attention in turns over heads and blocks of queries computes what one piece computes."""

import functools
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from leapjax.models import transformer
from leapjax.models.attention import BlockCausal, Windowed
from leapjax.ops import attention
from leapjax.ops.attention import Rope
from leapjax.ops.cache import Cached
from leapjax.ops.cached_attention import attend_both
from leapjax.ops.primitives import rope_tables
from leapjax.sharding import parse, placements
from leapjax.testing import tiny_config, tiny_params
from tests.decoding.harness import decode, params_of, request, structure
from tests.models import transcription


def close(got, want):
    np.testing.assert_allclose(got, want, atol=2e-5)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    groups=st.integers(1, 4),
    share=st.integers(1, 3),
    each=st.booleans(),
    share_of_scores=st.sampled_from([0.02, 0.2, 0.6]),
    seed=st.integers(0, 9),
)
def test_attend_in_turns(rows, queries, keys, groups, share, each, share_of_scores, seed):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((rows, queries, groups * share, 4), np.float32)
    k, v = rng.standard_normal((2, rows, keys, groups, 4), np.float32)
    valid = rng.random((rows, queries, keys) if each else (rows, keys)) < 0.6
    places = [rng.integers(0, 50, (rows, n)) for n in (queries, keys)]
    rope = Rope(*(rope_tables(place, 4, 100.0) for place in places))
    scores = int(share_of_scores * 4 * rows * queries * keys * groups * share)
    in_turns = functools.partial(attention.attend, scores=scores)
    got, rotated = jax.jit(in_turns)(q, k, v, valid, rope)
    assert got.shape == (rows, queries, groups * share * 4) and np.isfinite(got).all()
    for b in range(rows):
        own, turned = (
            transcription.rotate(x[b].astype(np.float64), place[b], 100.0)
            for x, place in zip((q, k), places, strict=True)
        )
        close(rotated[b], turned)
        mask = np.broadcast_to(valid[b], (queries, keys))
        some = mask.any(-1)  # without a key nothing is right
        if some.any():
            want = transcription.attention(own[some], turned, v[b], mask[some])
            close(got[b][some], want)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("rows", [5, 6])
def test_windows_attend_in_turns_of_rows(rows, each):
    """The last turn may compute rows again."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((rows, 3, 4, 4), np.float32)
    k, v = rng.standard_normal((2, rows, 3, 2, 4), np.float32)
    keys, values = rng.standard_normal((2, 2, rows, 2, 16, 4), np.float32)
    valid = rng.random((rows, 3, 3) if each else (rows, 3)) < 0.6
    cached = Cached(keys, values, rng.random((rows, 16)) < 0.6, jnp.int32(1))
    of_two = 2 * 4 * 3 * 4 * (16 + 3)  # bytes of two rows' scores
    both = functools.partial(attend_both, q, k, v, valid)
    for scores in (of_two, 0):
        turns = jax.jit(functools.partial(both, scores=scores))
        assert "while" in turns.lower(cached).as_text()
        close(turns(cached), jax.jit(both)(cached))


@pytest.mark.parametrize(
    "shape", [(8, 768, 768, 32, 1), (4, 384, 384, 4, 7), (1, 8448, 8448, 32, 1)]
)
def test_scores_of_a_turn_are_few(shape):
    rows, queries, keys, groups, share = shape
    heads, block = attention.turn(*shape, attention.SCORES)
    assert groups % heads == 0 and block <= queries
    assert attention.SCORES / 2 < 4 * rows * heads * share * block * keys <= attention.SCORES


def test_no_array_of_all_scores():
    """Memory of a long sequence grows with its length, not with the square of it."""

    def temporaries(columns):
        x = jax.ShapeDtypeStruct((1, columns, 4, 8), jnp.float32)
        valid = jax.ShapeDtypeStruct((1, columns), jnp.bool_)
        made = jax.jit(functools.partial(attention.attend, scores=2**20)).lower(x, x, x, valid)
        return made.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8192) < 2.2 * temporaries(4096) < 4096 * 4096 * 4


RULES = {
    "bidirectional": {},
    "windowed": {"attention": Windowed(5)},
    "blocks": {"attention": BlockCausal(4)},
}


@pytest.mark.parametrize("rule", RULES)
def test_hidden_states_in_turns(rule, monkeypatch):
    config = tiny_config("dream", **RULES[rule])
    params = tiny_params(config)
    ids = np.random.default_rng(0).integers(0, 30, (2, 21)).astype(np.int32)
    place = np.arange(21, dtype=np.int32)[None] - np.array([[0], [6]], np.int32)
    outputs = np.array([[3, 4], [20, 7]], np.int32)

    def hidden():
        run = functools.partial(transformer.hidden_states, config=config)
        args = {"ids": ids, "positions": np.maximum(place, 0), "valid": place >= 0}
        return jax.jit(lambda p: run(p, **args, outputs=outputs))(params)

    whole = hidden()
    attend = functools.partial(attention.attend, scores=2000)
    monkeypatch.setattr(attention, "attend", attend)
    close(hidden(), whole)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_decode_in_turns(cache, monkeypatch):
    config, program = structure(cache=cache)
    # Not the empty prompt: all its positions are alike, so rounding decides what comes first.
    ids = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [7], [2, 7, 1, 8]]
    requests = [request(row, config, i) for i, row in enumerate(ids)]
    params = params_of("llada")
    whole = decode(params, requests, program)
    jax.clear_caches()  # the same shapes and program, traced anew
    calls = []

    def attend(*args):
        calls.append(args[0].shape)
        return in_turns(*args)

    in_turns = functools.partial(attention.attend, scores=1000)
    monkeypatch.setattr(attention, "attend", attend)
    blocked = decode(params, requests, program)
    jax.clear_caches()
    assert calls
    for one, other in zip(whole, blocked, strict=True):
        close(one.pop("commit_confidence"), other.pop("commit_confidence"))
        assert one == other


@pytest.mark.parametrize(
    ("mesh", "groups"), [("tensor=2", 4), ("fsdp=2,tensor=2", 2), ("tensor=4", 2)]
)
def test_turns_of_each_device(mesh, groups):
    """Each device takes turns over its own heads: nothing is gathered, nothing changes."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 12, 8, 4), np.float32)
    k, v = rng.standard_normal((2, 2, 12, groups, 4), np.float32)
    valid = rng.random((2, 12)) < 0.6
    rope = rope_tables(np.tile(np.arange(12), (2, 1)), 4, 100.0)
    place = placements(parse(mesh))[0]
    inputs = [
        jax.device_put(x, place.sharding(("rows", None, heads, None), x.shape))
        for x, heads in ((q, "heads"), (k, "kv_heads"), (v, "kv_heads"))
    ]
    few = jax.jit(functools.partial(attention.attend, scores=600))
    whole = attention.attend(q, k, v, valid, Rope(rope, rope))
    with jax.set_mesh(place.mesh):
        lowered = few.lower(*inputs, valid, Rope(rope, rope))
        if not groups % place.mesh.shape["tensor"]:
            assert "all-gather" not in lowered.compile().as_text()
        for got, want in zip(few(*inputs, valid, Rope(rope, rope)), whole, strict=True):
            close(got, want)


def lowered(platform, dtype, rows=8, columns=768, **how):
    """`attend` for a platform that is not attached, as StableHLO."""
    x = jax.ShapeDtypeStruct((rows, columns, 32, 128), dtype)
    valid = jax.ShapeDtypeStruct((rows, columns), jnp.bool_)
    traced = jax.jit(functools.partial(attention.attend, **how)).trace(x, x, x, valid)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_gpu_takes_few_turns():
    """LLaDA-8B's shape: one turn on a GPU, by JAX's attention; 32 on a TPU; long ones in turns."""
    tpu, gpu = lowered("tpu", jnp.bfloat16), lowered("cuda", jnp.bfloat16)
    assert "stablehlo.while" in tpu and "stablehlo.while" not in gpu
    assert re.findall(r"dot_general.*precision = \[(\w+)", tpu) == ["DEFAULT"] * 2
    assert gpu.count("stablehlo.dot_general") == 2
    assert "tensor<8x32x768x768xf32>" in gpu and "tensor<8x32x768x768xf32>" not in tpu
    long = lowered("cuda", jnp.bfloat16, 1, 8448)
    assert "stablehlo.while" in long and "tensor<1x32x8448x8448xf32>" not in long


def test_a_gpu_computes_float32_exactly():
    exact = lowered("cuda", jnp.float32)
    assert "stablehlo.while" not in exact
    assert re.findall(r"dot_general.*precision = \[(\w+)", exact) == ["HIGHEST"] * 2


@pytest.mark.parametrize("each", [False, True])
def test_jax_attention_is_ours(each):
    rng = np.random.default_rng(3)
    q = rng.standard_normal((2, 5, 6, 8), np.float32)
    k, v = rng.standard_normal((2, 2, 7, 3, 8), np.float32)
    valid = rng.random((2, 5, 7) if each else (2, 7)) < 0.6
    close(attention.library_mix(q, k, v, valid), attention.softmax_mix(q, k, v, valid))


def test_gradients_in_turns():
    """Training differentiates the turns: the same gradients, in less memory."""
    rng = np.random.default_rng(4)
    q, k, v = rng.standard_normal((3, 2, 64, 4, 8), np.float32)
    valid = rng.random((2, 64)) < 0.7

    def gradients(scores):
        def loss(*qkv):
            return jnp.sum(attention.attend(*qkv, valid, scores=scores)[0] ** 2)

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
        return compiled(q, k, v), compiled.memory_analysis().temp_size_in_bytes

    whole, most = gradients(2**20)
    for scores in (2**15, 2**13):  # heads in turns; queries too
        turns, held = gradients(scores)
        for got, want in zip(turns, whole, strict=True):
            close(got, want)
        assert held < 0.6 * most
