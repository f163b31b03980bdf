"""The weighting, against the formula written out in NumPy, one token at a time."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax.models import ModelConfig, transformer
from leapjax.ops.arrangement import as_arranged, for_training
from leapjax.training import layout, objective

LLADA = ModelConfig("llada", 23, 16, 2, 4, 4, 4, 24, 1e4, 1e-5, 64, 1, 0, 0)
DREAM = dataclasses.replace(
    LLADA, family="dream", n_kv_heads=2, qkv_bias=True, shift_logits=True, tie_embeddings=True
)
PAIRS = [([5, 6, 7], [8, 9]), ([5], [10, 11, 12, 13]), ([2, 3, 4, 5], []), ([9, 9], [7])]
MODELS = pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])


def direct(logits, batch, masked, p, shift):
    """sum over rows of (sum over masked of nats / p) / length, averaged over the rows."""
    rows = []
    for b in range(len(p)):
        total = 0.0
        for i in range(masked.shape[1]):
            if masked[b, i]:
                row = np.asarray(logits[b, i - 1 if shift else i], np.float64)
                target = batch["ids"][b, i]
                total += (np.log(np.exp(row).sum()) - row[target]) / p[b]
        rows.append(total / batch["trainable"][b].sum())
    return float(np.mean(rows))


@MODELS
@pytest.mark.parametrize("kind", ["answers", "text"])
@pytest.mark.parametrize("seed", range(4))
def test_loss_is_the_formula(config, kind, seed):
    if kind == "answers":
        batch, window = layout.pack(PAIRS, 5, 6, 0, 0), 6
    else:
        batch = layout.pack_text([q + a for q, a in PAIRS], 7, 0)
        window = batch.pop("window")
    params = transformer.init_params(config, jax.random.key(seed))
    params["embed"] = params["embed"] * 30  # far from a uniform prediction
    key = jax.random.key(100 + seed)
    noisy, masked, p = (
        np.asarray(x)
        for x in objective.corrupt(key, batch["ids"], batch["trainable"], config.mask_token_id)
    )
    if config.shift_logits:
        masked = masked & (np.arange(masked.shape[1]) > 0)  # no output to the left of column 0
    assert masked.any()
    positions = np.maximum(np.cumsum(batch["valid"], 1) - 1, 0).astype(np.int32)
    hidden = transformer.hidden_states(params, config, noisy, positions, batch["valid"])
    logits = np.asarray(transformer.head(params, config, hidden))
    want = direct(logits, batch, masked, p, config.shift_logits)
    got, nats = jax.jit(objective.loss, static_argnums=(1, 4))(params, config, batch, key, window)
    assert float(got) == pytest.approx(want, rel=2e-5)
    assert 0 < float(nats) < 20


def test_only_trainable_tokens_are_masked_and_each_with_its_rows_probability():
    rows, width = 64, 4000
    ids = jnp.full((rows, width), 5, jnp.int32)
    trainable = jnp.arange(width)[None, :] >= jnp.full((rows, 1), 1000)
    noisy, masked, p = objective.corrupt(jax.random.key(0), ids, trainable, 1)
    assert not np.asarray(masked)[:, :1000].any()
    np.testing.assert_array_equal(np.asarray(noisy) == 1, np.asarray(masked))
    seen = np.asarray(masked)[:, 1000:].mean(axis=1)
    assert np.abs(seen - np.asarray(p)).max() < 5 * 0.5 / math.sqrt(3000)


def test_masking_probabilities_cover_the_unit_interval_evenly():
    for seed in range(20):
        p = np.sort(np.asarray(objective.mask_probabilities(jax.random.key(seed), 16)))
        assert p[0] >= objective.EPS and p[-1] <= 1
        # One in each sixteenth, since t is stratified.
        t = (p - objective.EPS) / (1 - objective.EPS)
        np.testing.assert_array_equal(np.floor(t * 16 + 1e-4).astype(int) % 16, np.arange(16))


def test_a_floor_lifts_every_masking_probability():
    ids, trainable = np.ones((512, 40), np.int32), np.ones((512, 40), bool)
    key, floor = jax.random.key(5), jnp.float32(0.5)
    _, plain, low = objective.corrupt(key, ids, trainable, 0)
    _, masked, p = objective.corrupt(key, ids, trainable, 0, floor=floor)
    np.testing.assert_allclose(p, 0.5 + 0.5 * np.asarray(low), rtol=1e-6)
    assert abs(float(masked.mean()) - 0.75) < 0.02 < abs(float(plain.mean()) - 0.75)


def test_pack_lays_rows_out_as_at_decode_time():
    batch = layout.pack(PAIRS[:2], 3, 5, pad_id=20, eos_id=21)
    assert batch["ids"].tolist() == [
        [5, 6, 7, 8, 9, 21, 21, 21],
        [20, 20, 5, 10, 11, 12, 13, 21],
    ]
    assert batch["valid"][1].tolist() == [False] * 2 + [True] * 6
    assert batch["trainable"].tolist() == [[False] * 3 + [True] * 5] * 2


@MODELS
def test_the_flat_forward_is_the_models(config):
    params = transformer.init_params(config, jax.random.key(0))
    batch = layout.pack(PAIRS, 5, 6, 0, 0)
    positions = np.maximum(np.cumsum(batch["valid"], 1) - 1, 0).astype(np.int32)
    args = (params, config, batch["ids"], positions, batch["valid"])
    want = np.asarray(transformer.hidden_states(*args))[batch["valid"]]
    weights = for_training(params, config)
    got = np.asarray(transformer.hidden_states(weights, *args[1:]))[batch["valid"]]
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


@MODELS
def test_gradients_are_those_of_the_models_own_forward(config, monkeypatch):
    params = transformer.init_params(config, jax.random.key(0))
    batch = layout.pack(PAIRS, 5, 6, 0, 0)

    def gradient():
        return jax.grad(lambda p: objective.loss(p, config, batch, jax.random.key(4), 6)[0])(params)

    flat = gradient()
    monkeypatch.setattr(objective, "for_training", lambda p, config, _: as_arranged(p, config))
    for got, want in zip(jax.tree.leaves(flat), jax.tree.leaves(gradient()), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, float(np.abs(want).max())))
