"""On one CPU a row's tokens and confidences are the same bits in every batch.

`make test-goldens` compiles these as users do; quick compilation keeps the order of sums anyway.
"""

import dataclasses

import numpy as np
import pytest

import leapjax
from leapjax import native
from leapjax.config import DecodeConfig, pairs
from leapjax.models.attention import Bidirectional
from leapjax.models.config import Experts, layer_runs
from leapjax.policies import POLICIES
from leapjax.testing import tiny_config, tiny_params

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not native.available(), reason="no C++ compiler for leapjax.native"),
]


def model(width, **changes):
    shape = {"d_model": width, "n_layers": 1, "mlp_hidden_size": 2 * width, "vocab_size": 90}
    config = tiny_config(**(shape | changes))
    return leapjax.LM(tiny_params(config), config, codec=None)


def prompts(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 80, 1 + n % 9).tolist() for n in range(count)]


def assert_rows_keep_their_bits(lm, job, batches):
    """Whatever the batch size: ids, steps, confidences."""
    asked = [
        lm.request({"id": n, "prompt_ids": p}, job) for n, p in enumerate(prompts(max(batches)))
    ]
    whole = list(lm.stream(asked, batch_size=max(batches)))
    for size in batches:
        for start in range(0, min(len(asked), 2 * size), size):
            some = asked[start : start + size]
            for got, want in zip(lm.stream(some, batch_size=size), whole[start:], strict=False):
                assert dataclasses.asdict(got) == dataclasses.asdict(want), (size, start)


@pytest.mark.parametrize("width", [16, 64, 128, 512])
def test_every_width_and_batch(width):
    job = DecodeConfig(gen_length=8, block_length=4, threshold=0.6, relaxed_threshold=0.3)
    assert_rows_keep_their_bits(model(width), job, [1, 2, 3, 7, 8, 32])


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_and_cache(policy, cache):
    if pairs.refusal(cache, policy):
        pytest.skip(f"{policy} reads every column in every pass")
    job = DecodeConfig(gen_length=8, block_length=4, policy=policy, cache=cache)
    assert_rows_keep_their_bits(model(64), job, [1, 7])


@pytest.mark.parametrize(
    "changes",
    [
        {"linear_bias": True, "norm_bias": True, "head_bias": True, "qkv_bias": True},
        {"family": "dream", "n_heads": 2, "n_kv_heads": 1, "head_dim": 64, "tie_embeddings": True},
        {
            "family": "llada_moe",
            "qk_norm": False,
            "layer_runs": layer_runs([Experts(12, 3, 40, 70)], 128, Bidirectional()),
        },
    ],
    ids=["biases", "grouped-tied", "experts"],
)
def test_other_models(changes):
    job = DecodeConfig(gen_length=8, block_length=4)
    assert_rows_keep_their_bits(model(128, **changes), job, [1, 2, 7])
