"""Block diffusion, against the sources' mask and loss written out one pair, one token at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax import tasks
from leapjax.errors import UserError
from leapjax.models import ModelConfig, transformer
from leapjax.models.attention import Bidirectional, BlockCausal
from leapjax.training import block_diffusion, layout, objective
from leapjax.training.config import Phase, Shape
from leapjax.training.data import Generated

N = 4  # tokens per block
SDAR = ModelConfig(
    "a2d", 23, 16, 2, 4, 2, 4, 24, 1e4, 1e-5, 64, 1, 0, 0, qk_norm=True, attention=BlockCausal(N)
)
FAST = dataclasses.replace(SDAR, qk_norm=False, qkv_bias=True, shift_logits=True, seeds_blocks=True)
PAIRS = [([5, 6, 7], [8, 9]), ([5, 4, 3, 2], [10, 11, 12, 13]), ([2] * 6, []), ([9] * 9, [7] * 6)]
MODELS = pytest.mark.parametrize("config", [SDAR, FAST], ids=["sdar", "fast_dllm_v2"])


def rows_of(kind):
    """A batch and its window: rows with prompts, whose blocks begin in prompts, or texts."""
    if kind == "answers":
        batch = layout.pack_blocks(PAIRS, 9, 7, 0, 0, N)
    else:
        batch = layout.pack_text([q + a for q, a in PAIRS], 15, 0)
    return batch, batch.pop("window")


def made(config, seed=0):
    params = transformer.init_params(config, jax.random.key(seed))
    # Attention has to show in the outputs, and predictions to be far from uniform.
    return jax.tree.map(
        lambda x: 15 * x if x.ndim == 3 or len(x) == config.vocab_size else x, params
    )


def pairwise(length, valid):
    """BD3LM's three rules over a noisy and a clean copy of one row, pair by pair."""
    mask = np.zeros((2 * length, 2 * length), bool)
    for q in range(2 * length):
        for k in range(2 * length):
            clean_q, clean_k = q >= length, k >= length
            block_q, block_k = q % length // N, k % length // N
            diagonal = block_q == block_k and clean_q == clean_k
            offset = block_q > block_k and clean_k and not clean_q
            causal = block_q >= block_k and clean_k and clean_q
            mask[q, k] = (diagonal or offset or causal) and valid[k % length]
    return mask


def direct(params, config, batch, noisy, scored, p):
    """The loss, row by row: both whole copies in one pass, then one token at a time."""
    free = dataclasses.replace(config, attention=Bidirectional())  # the mask is ours alone
    rows = []
    for b in range(len(noisy)):
        ids, length = batch["ids"][b], len(noisy[b])
        both = np.concatenate([noisy[b], ids])[None]
        places = np.concatenate([np.arange(length)] * 2).astype(np.int32)[None]
        mask = pairwise(length, batch["valid"][b])[None]
        hidden = transformer.hidden_states(params, free, both, places, mask)
        logits = np.asarray(transformer.head(params, free, hidden), np.float64)[0]
        total = 0.0
        for i in range(length):
            if not scored[b, i]:
                continue
            row = logits[i]
            if config.shift_logits:
                row = logits[length + i - 1 if i % N == 0 else i - 1]
            total += (np.log(np.exp(row).sum()) - row[ids[i]]) / p[b, i]
        rows.append(total / batch["trainable"][b].sum())
    return float(np.mean(rows))


@MODELS
@pytest.mark.parametrize("kind", ["answers", "text"])
def test_loss_is_the_formula(config, kind):
    batch, window = rows_of(kind)
    params = made(config)
    compiled = jax.jit(block_diffusion.loss, static_argnums=(1, 4))
    for seed in range(3):
        key = jax.random.key(seed)
        noise = block_diffusion.corrupt(key, batch["ids"], batch["trainable"], config)
        noisy, scored, p = (np.asarray(x) for x in noise)
        assert scored.any()
        want = direct(params, config, batch, noisy, scored, p)
        got, nats = compiled(params, config, batch, key, window)
        assert float(got) == pytest.approx(want, rel=2e-5)
        assert 0 < float(nats) < 20


def test_a_block_is_computed_as_a_decoder_computes_it():
    """Each noisy block as in a pass of the finished blocks and this one, clean ones as alone."""
    batch, _ = rows_of("answers")
    params, ids, valid = made(SDAR), batch["ids"], batch["valid"]
    rows, columns = ids.shape
    noisy, _, _ = block_diffusion.corrupt(jax.random.key(3), ids, batch["trainable"], SDAR)
    places = np.broadcast_to(np.arange(columns, dtype=np.int32), ids.shape)
    both = block_diffusion.hidden_states(params, SDAR, noisy, places, ids, valid)
    plain = jax.jit(transformer.hidden_states, static_argnums=1)
    clean = plain(params, SDAR, ids, places, valid)
    np.testing.assert_allclose(both[:, columns:], clean, atol=1e-5)
    assert not np.array_equal(noisy, ids)
    for start in range(0, columns, N):
        end = start + N
        row = np.concatenate([ids[:, :start], noisy[:, start:end], ids[:, end:]], axis=1)
        # What lies behind the block is not visible to it.
        alone = plain(params, SDAR, row, places, valid)[:, start:end]
        real = valid[:, start]
        np.testing.assert_allclose(both[:, start:end][real], alone[real], atol=1e-5)


@MODELS
def test_each_block_has_its_own_level(config):
    rows, blocks = 4, 6
    config = dataclasses.replace(config, attention=BlockCausal(1000))
    ids = np.full((rows, blocks * 1000), 5, np.int32)
    trainable = np.broadcast_to(np.arange(blocks * 1000) >= 1500, ids.shape)
    noisy, scored, p = (
        np.asarray(x) for x in block_diffusion.corrupt(jax.random.key(0), ids, trainable, config)
    )
    masked = noisy == config.mask_token_id
    assert not masked[:, :1500].any() and not scored[:, :1500].any()
    first = np.arange(blocks * 1000) % 1000 == 0
    np.testing.assert_array_equal(scored[:, ~first], masked[:, ~first])
    if config.seeds_blocks:  # known before its block begins: never masked, always scored
        assert not masked[:, first].any() and (p[trainable & first] == 1).all()
        np.testing.assert_array_equal(scored[:, first], trainable[:, first])
    levels = p.reshape(rows, blocks, 1000)[..., 1:]
    assert (levels == levels[..., :1]).all()
    seen = masked.reshape(rows, blocks, 1000)[:, 2:, 1:].mean(axis=-1)
    assert np.abs(seen - levels[:, 2:, 0]).max() < 5 * 0.5 / np.sqrt(1000)
    # One level in each of the batch's equal strata, but in no order.
    t = (levels[..., 0].ravel() - objective.EPS) / (1 - objective.EPS)
    assert sorted(np.floor(t * t.size + 1e-4).astype(int) % t.size) == list(range(t.size))
    assert (np.diff(t) < 0).sum() > 3


def test_rows_begin_in_column_0_and_end_with_their_last_block():
    batch = layout.pack_blocks(PAIRS[:3], 6, 5, pad_id=20, eos_id=21, block_length=4)
    assert batch["ids"].tolist() == [
        [5, 6, 7, 8, 9, 21, 21, 21, 20, 20, 20, 20],
        [5, 4, 3, 2, 10, 11, 12, 13, 21, 21, 21, 21],
        [2, 2, 2, 2, 2, 2, 21, 21, 20, 20, 20, 20],
    ]
    assert batch["valid"].sum(axis=1).tolist() == [8, 12, 8]
    assert batch["trainable"].sum(axis=1).tolist() == [5, 8, 2]
    assert batch["window"] == 8  # an answer of 5 lies in two blocks of 4 at most
    with pytest.raises(UserError, match="do not fit"):
        layout.pack_blocks([([5], [6] * 5)], 6, 5, 20, 21, 4)


def test_a_floor_lifts_every_level():
    ids, trainable = np.ones((64, 40), np.int32), np.ones((64, 40), bool)
    _, masked, p = block_diffusion.corrupt(
        jax.random.key(5), ids, trainable, SDAR, floor=jnp.float32(0.5)
    )
    assert float(p.min()) >= 0.5 and abs(float(masked.mean()) - 0.75) < 0.05


@pytest.mark.parametrize("name", ["block_share", "short_share"])
def test_shares_of_canvases_are_for_bidirectional_models(name):
    shape = dataclasses.replace(Shape(1, 4, 10, 12, {"drill": 1.0}), **{name: 0.5})
    with pytest.raises(UserError, match=f"{name} is for bidirectional models"):
        Generated(tasks.get("wordproblems"), [Phase(0, (shape,))], 0, None, 0, 0, block_length=4)
