"""The proposal from a summary of the logits equals the one from whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax.config import DecodeConfig
from leapjax.decoding import program_for, summary
from leapjax.decoding.proposal import propose
from leapjax.decoding.state import initial_state
from leapjax.ops import arrangement
from leapjax.testing import tiny_config, tiny_params
from tests.decoding.harness import assert_same_proposal

B, W = 6, 4


# The head's own kernel says the same: tests/native.
pytestmark = pytest.mark.usefixtures("without_kernels")


def made(seed, piece, monkeypatch, **changes):
    """Parameters in pieces, and a program that streams them."""
    monkeypatch.setattr(arrangement, "PIECE", piece)
    config = tiny_config(**changes)
    params = arrangement.arrange(tiny_params(config, seed), config)
    program = program_for(
        DecodeConfig(gen_length=8, block_length=W),
        config,
        length=16,
        dtype="float32",
        eot_token_id=3,
    )
    return config, params, program


@pytest.mark.parametrize("piece", [1, 7, 16, 64])
@pytest.mark.parametrize("seed", range(3))
def test_same_proposal(monkeypatch, seed, piece):
    tied = seed == 1
    config, params, program = made(
        seed, piece, monkeypatch, tie_embeddings=tied, head_bias=not tied, logit_scale=1.5
    )
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.standard_normal((B, W, config.d_model)), jnp.float32)
    assert_same_proposal(params, config, program, hidden, tied)


def test_the_lowest_of_equal_tokens_is_chosen(monkeypatch):
    config, params, program = made(0, 8, monkeypatch)
    pieces = tuple(jnp.zeros_like(p) for p in params.head.pieces)
    flat = params.replace(head=params.head.replace(pieces=pieces))
    hidden = jnp.ones((B, W, config.d_model))
    options = initial_state([], program, B).options
    equal = jnp.zeros((B, W, config.vocab_size), jnp.float32)
    for proposal in (
        summary.propose(flat, hidden, options, program),
        propose(equal, options, None, jnp.zeros(B, bool), program),
    ):
        assert not np.asarray(proposal.token).any()
        np.testing.assert_allclose(proposal.confidence, 1 / config.vocab_size, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.5}, {"cfg_scale": 1.0}, {"policy": "margin"}, {"schedule": "dream"}],
)
def test_whole_logits_where_more_is_asked_for(monkeypatch, options):
    config, params, _ = made(0, 8, monkeypatch)
    if "schedule" in options:
        options = {"policy": "low_confidence", **options}
    job = DecodeConfig(gen_length=8, block_length=8, **options)
    program = program_for(job, config, length=16, dtype="float32", eot_token_id=None)
    assert not summary.applies(params, program)


def test_a_decode_with_and_without_pieces_is_the_same(monkeypatch):
    monkeypatch.setattr(arrangement, "PIECE", 9)
    config = tiny_config()
    params = tiny_params(config)
    job = DecodeConfig(gen_length=16, block_length=8, threshold=0.5, relaxed_threshold=0.3)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    summed_up = leapjax.LM(params, config, codec=None).generate(prompts, job)
    jax.clear_caches()  # a trace remembers the choice
    monkeypatch.setattr(summary, "applies", lambda params, program: False)
    whole = leapjax.LM(params, config, codec=None).generate(prompts, job)
    for a, b in zip(summed_up, whole, strict=True):
        assert a.output_ids == b.output_ids and a.commit_step == b.commit_step
