"""Decodes with our kernels are those of XLA's products."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax import native
from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.models.attention import Bidirectional, Windowed
from leapjax.models.config import Experts, Run, layer_runs
from leapjax.ops import arrangement
from leapjax.testing import tiny_config, tiny_params
from tests.decoding.harness import assert_same_proposal

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler for leapjax.native")
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8]]


def fused(family, **changes):
    """A model whose keys and values end where panels do."""
    return tiny_config(family, n_heads=4, head_dim=native.panel(), **changes)


def assert_same_decode(monkeypatch, shape, cache):
    """Tokens and steps of packed matrices are those of XLA's products, and logits close."""
    params = tiny_params(shape)
    job = DecodeConfig(gen_length=16, block_length=8, cache=cache)
    made = arrangement.arrange(params, shape)
    vkq = made.runs[0].layers[0]["vkq"]
    assert made.backend == "cpu"
    assert (len(vkq.packed) == 1) == (not any(n % native.panel() for n in vkq.widths))
    packed = leapjax.LM(params, shape, codec=None)
    got, logits = packed.generate(PROMPTS, job, batch_size=2), packed.logits([[1, 2, 3, 4]])
    monkeypatch.setattr(native, "available", lambda: False)
    plain = leapjax.LM(params, shape, codec=None)
    assert arrangement.arrange(params, shape).backend == "xla"
    np.testing.assert_allclose(logits, plain.logits([[1, 2, 3, 4]]), rtol=1e-3, atol=1e-4)
    for a, b in zip(got, plain.generate(PROMPTS, job, batch_size=2), strict=True):
        assert a.output_ids == b.output_ids and a.commit_step == b.commit_step


# Keys and values that end where panels don't need no cache of their own.
KINDS = [
    pytest.param(*c, marks=pytest.mark.slow if c[0] is tiny_config and c[2] != "dual" else ())
    for c in itertools.product([tiny_config, fused], ["llada", "dream"], ["none", "prefix", "dual"])
]


@pytest.mark.parametrize(("config", "family", "cache"), KINDS)
def test_same_decode(monkeypatch, config, family, cache):
    shape = config(family, tie_embeddings=family == "dream")
    assert_same_decode(monkeypatch, shape, cache)


@pytest.mark.parametrize(
    "changes",
    [
        {"linear_bias": True, "norm_bias": True},
        {"linear_bias": True, "head_dim": 24, "n_kv_heads": 2},
        # In one product, but rotated outside.
        {"head_dim": native.panel() // 2, "n_heads": 4, "n_kv_heads": 2},
        {"qk_norm": True},
        {
            "n_layers": 3,
            "layer_runs": (Run("first", 1, 40), Run("near", 2, 24, Windowed(9))),
        },
    ],
    ids=["norm-bias", "apart", "rotated-outside", "qk-norm", "unlike-runs"],
)
def test_same_decode_of_other_models(monkeypatch, changes):
    family = "dream" if "qk_norm" in changes else "llada"  # LLaDA has no name for such norms
    made = tiny_config if "head_dim" in changes else fused
    shape = made(family, **changes)
    assert_same_decode(monkeypatch, shape, "dual")


def with_experts():
    """A dense layer, one with a shared expert and few experts a token, and one with neither."""
    few = Experts(6, 2, 20, 12, score="sigmoid", normalize=True, scale=1.5, bias="selects")
    runs = layer_runs([None, few, Experts(4, 3, 9)], 24, Bidirectional())
    return tiny_config("llada_moe", n_layers=3, layer_runs=runs)


def test_same_decode_with_experts(monkeypatch):
    assert_same_decode(monkeypatch, with_experts(), "dual")


@pytest.mark.parametrize(
    ("cache", "config"),
    [("none", fused("llada")), ("dual", fused("llada")), ("dual", with_experts())],
    ids=["none", "dual", "experts"],
)
def test_a_row_decodes_alike_in_any_batch(cache, config):
    lm = leapjax.LM(tiny_params(config), config, codec=None)
    job = DecodeConfig(gen_length=16, block_length=8, cache=cache)
    prompts = [*PROMPTS, [9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3]]
    together = lm.generate(prompts, job, batch_size=3)
    for prompt, wanted in zip(prompts, together, strict=True):
        (alone,) = lm.generate([prompt], job, batch_size=1)
        assert alone.output_ids == wanted.output_ids
        assert alone.commit_confidence == wanted.commit_confidence


@pytest.mark.parametrize("vocab_size", [33, 100])
@pytest.mark.parametrize("tied", [False, True])
def test_same_proposal(vocab_size, tied):
    b, w = 6, 4
    config = tiny_config(
        vocab_size=vocab_size, tie_embeddings=tied, head_bias=not tied, logit_scale=1.5
    )
    params = arrangement.arrange(tiny_params(config), config)
    program = program_for(
        DecodeConfig(gen_length=8, block_length=w),
        config,
        length=16,
        dtype="float32",
        eot_token_id=3,
    )
    hidden = jax.random.normal(jax.random.key(0), (b, w, config.d_model))
    assert_same_proposal(params, config, program, hidden, tied)


def test_large_or_narrow_weights_are_not_packed(monkeypatch):
    params = tiny_params(config := tiny_config())
    narrow = tiny_params(config, dtype=jnp.bfloat16)
    assert arrangement.arrange(params, config).backend == "cpu"
    assert arrangement.arrange(params, config, "bfloat16").backend == "xla"
    assert arrangement.arrange(narrow, config).backend == "cpu"
    monkeypatch.setattr(arrangement, "PACKED_UP_TO_BYTES", 1000)
    assert arrangement.arrange(params, config).backend == "xla"
