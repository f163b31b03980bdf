"""The transformer, op by op and whole, against NumPy float64; and what it may not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax.models import param_shapes, transformer
from leapjax.models.attention import Causal, Windowed, attention_mask
from leapjax.models.config import Run
from leapjax.ops import attention, primitives, xla
from leapjax.ops.arrangement import as_arranged
from leapjax.ops.cache import Cached
from leapjax.testing import tiny_config, tiny_params
from tests.models import transcription

VARIANTS = {
    "llada": tiny_config("llada"),
    "llada-gqa-bias": tiny_config(
        "llada", n_kv_heads=1, qkv_bias=True, linear_bias=True, head_bias=True, norm_bias=True
    ),
    "llada-tied-scaled": tiny_config(
        "llada", tie_embeddings=True, embed_scale=4.0, logit_scale=0.25
    ),
    "dream": tiny_config("dream"),
    "qk-norm": tiny_config("dream", qk_norm=True, head_dim=6, norm_bias=True),
    "block-causal": tiny_config("sdar"),
    "causal": tiny_config("llada", attention=Causal()),
    "unlike-runs": tiny_config(
        "llada",
        n_layers=4,
        layer_runs=(Run("first", 1, 40), Run("near", 2, 24, Windowed(3)), Run("last", 1, 12)),
    ),
    "dream-tied-wide-heads": tiny_config("dream", tie_embeddings=True, head_dim=6, n_heads=2),
}


def random(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(got, want, tolerance=2e-5):
    """Equal as the contract means it: relative to the largest value."""
    want = np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def run(params, config, ids, first=None, dtype=jnp.float32):
    """(B, T) ids, rows starting at column `first` -> (B, T, V) logits."""
    ids = np.asarray(ids, np.int32)
    first = np.zeros(len(ids), np.int32) if first is None else np.asarray(first, np.int32)
    place = np.arange(ids.shape[1], dtype=np.int32)[None, :] - first[:, None]
    return jit_logits(params, config, ids, np.maximum(place, 0), place >= 0, dtype)


def logits(params, config, ids, positions, valid, dtype):
    hidden = transformer.hidden_states(params, config, ids, positions, valid, dtype)
    return transformer.head(params, config, hidden)


jit_logits = jax.jit(logits, static_argnames=("config", "dtype"))
attend = jax.jit(attention.attend)


@pytest.mark.parametrize("bias", [False, True])
def test_rms_norm(bias):
    x, weight, shift = random(5, 8), random(8, seed=1), random(8, seed=2)
    got = jax.jit(primitives.rms_norm)(x, weight, shift if bias else None, 0.1)
    want = transcription.rms_norm(x.astype(np.float64), weight, shift if bias else None, 0.1)
    close(got, want)


@pytest.mark.parametrize("theta", [100.0, 1e6])
def test_rotary_embedding(theta):
    x, positions = random(2, 5, 3, 8), np.array([[0, 1, 2, 3, 4], [7, 0, 300, 2, 2]], np.int32)
    turn = jax.jit(lambda x, at: primitives.rotate(x, *primitives.rope_tables(at, 8, theta)))
    got = turn(x, positions)
    for b in range(2):
        close(got[b], transcription.rotate(x[b].astype(np.float64), positions[b], theta))


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
def test_attention_leaves_pads_out(heads, groups):
    q, k, v = random(2, 3, heads, 4), random(2, 7, groups, 4, seed=1), random(2, 7, groups, 4)
    valid = np.arange(7)[None, :] >= np.array([[0], [3]])
    got, _ = attend(q, k, v, valid)
    for b in range(2):
        keep = valid[b]
        close(got[b], transcription.attention(q[b], k[b][keep], v[b][keep]))


def test_attention_with_nothing_to_attend_is_finite():
    q, k = random(1, 2, 2, 4), random(1, 3, 2, 4)
    out, _ = attend(q, k, k, np.zeros((1, 3), bool))
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_one_block(name):
    config = VARIANTS[name]
    params = tiny_params(config)
    kind = config.runs[0]
    layer = {k: np.asarray(v[0]) for k, v in params[kind.name].items()}
    arranged = jax.tree.map(lambda leaf: leaf[0], as_arranged(params, config).runs[0].layers)
    x, positions = random(1, 6, config.d_model), np.arange(3, 9, dtype=np.int32)

    @jax.jit
    def block(x, layer, positions):
        rope = primitives.rope_tables(positions, config.head_dim, config.rope_theta)
        valid = attention_mask(kind.attention, positions, positions, jnp.ones((1, 6), bool))
        return transformer.layer_block(
            xla, x, layer, config.head_dim, rope, transformer.mixer(xla, valid)
        )[0]

    got = block(x, arranged, positions[None])
    wide = {k: v.astype(np.float64) for k, v in layer.items()}
    close(
        got[0],
        transcription.block(x[0].astype(np.float64), wide, config, positions, kind.attention),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model(name):
    config = VARIANTS[name]
    params = tiny_params(config, seed=3)
    oracle = transcription.Model(params, config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 11))
    got = run(params, config, ids)
    assert got.dtype == jnp.float32
    for b in range(2):
        close(got[b], oracle.logits(ids[b]))


@pytest.mark.parametrize("name", ["llada-gqa-bias", "dream"])
def test_left_pads_leave_no_gap_and_are_not_attended(name):
    config = VARIANTS[name]
    params = tiny_params(config, seed=3)
    oracle = transcription.Model(params, config)
    rng = np.random.default_rng(1)
    ids = rng.integers(0, config.vocab_size, (4, 12))
    first = np.array([0, 1, 5, 11])
    got = run(params, config, ids, first)
    for b, at in enumerate(first):
        close(got[b, at:], oracle.logits(ids[b, at:]))
    # Whatever lies in the pads, the rest is the same bit for bit.
    noise = rng.integers(0, config.vocab_size, ids.shape)
    pads = np.arange(12)[None, :] < first[:, None]
    again = run(params, config, np.where(pads, noise, ids), first)
    for b, at in enumerate(first):
        np.testing.assert_array_equal(got[b, at:], again[b, at:])


def test_head_reads_only_the_window():
    config = VARIANTS["llada"]
    params = tiny_params(config)
    hidden = random(2, 9, config.d_model)
    head = jax.jit(lambda hidden: transformer.head(params, config, hidden))
    close(head(hidden[:, 3:6]), np.asarray(head(hidden))[:, 3:6], 1e-6)


@pytest.mark.parametrize("name", ["dream", "qk-norm", "block-causal", "unlike-runs"])
def test_cached_passes_repeat_the_whole_pass(name):
    """Keys as kept, and a window recomputed against them, give the same states again."""
    config = VARIANTS[name]
    params = tiny_params(config)
    ids = np.random.default_rng(2).integers(0, 30, (2, 10)).astype(np.int32)
    positions = np.broadcast_to(np.arange(10, dtype=np.int32), (2, 10))
    start = np.array([2, 5], np.int32)
    pick, columns = np.arange(2)[:, None], start[:, None] + np.arange(4)

    @jax.jit
    def three(params, ids, positions):
        valid = jnp.ones(ids.shape, bool)
        plain = transformer.hidden_states(params, config, ids, positions, valid)
        kept, cache = refreshed(params, config, ids, positions, valid)
        part = ids[pick, columns], positions[pick, columns]
        # Fresh columns differ from cached ones, which nobody may read.
        spoilt = [
            jnp.where((columns[:, :, None] == np.arange(10)).any(1)[None, :, None, :, None], 9, c)
            for c in cache
        ]
        fresh = start, start + 4
        window = transformer.window_states(params, config, *part, valid, spoilt, start, fresh)
        # All but the first fresh: its cached keys are as good.
        fresh = start + 1, start + 4
        later = transformer.window_states(params, config, *part, valid, cache, start, fresh)
        return plain, kept, window, later

    plain, kept, window, later = three(params, ids, positions)
    close(kept, plain, 1e-6)
    close(window, np.asarray(plain)[pick, columns], 1e-5)
    close(later, np.asarray(plain)[pick, columns], 1e-5)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("each", [False, True], ids=["mask", "mask per query"])
def test_attention_to_cached_and_fresh_keys(heads, groups, each):
    q, k, v = random(2, 3, heads, 4), random(2, 3, groups, 4, seed=1), random(2, 3, groups, 4)
    keys, values = random(5, 2, groups, 7, 4, seed=2), random(5, 2, groups, 7, 4, seed=3)
    rng = np.random.default_rng(4)
    own, others = rng.random((2, 3, 3)) < 0.7, rng.random((2, 3, 7)) < 0.7
    if not each:
        own, others = own[:, 0], others[:, 0]
    got, _ = jax.jit(attention.attention)(q, k, v, own, None, Cached(keys, values, others, 3))
    for b in range(2):
        for i in range(3):
            keep = np.concatenate([m[b, i] if each else m[b] for m in (others, own)])
            both = (
                np.concatenate([old[3, b].transpose(1, 0, 2), new[b]])[keep]
                for old, new in ((keys, k), (values, v))
            )
            close(got[b, i : i + 1], transcription.attention(q[b, i : i + 1], *both))


def test_bfloat16_compute_is_close_to_float32():
    config = VARIANTS["llada"]
    params = tiny_params(config, logit_std=1.0)
    ids = np.random.default_rng(4).integers(0, config.vocab_size, (2, 10))
    exact = np.asarray(run(params, config, ids))
    rough = run(params, config, ids, dtype=jnp.bfloat16)
    assert rough.dtype == jnp.float32
    error = np.abs(np.asarray(rough) - exact)
    assert 0 < error.max() < 0.15 * np.abs(exact).max()
    assert error.mean() < 0.02 * np.abs(exact).max()


def test_program_does_not_grow_with_depth():
    def size(layers):
        config = tiny_config(n_layers=layers)
        shapes = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
            param_shapes(config),
            is_leaf=lambda x: isinstance(x, tuple),
        )
        ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        valid = jax.ShapeDtypeStruct((1, 8), bool)
        low = jit_logits.lower(shapes, config, ids, ids, valid, jnp.float32)
        return len(low.compile().as_text().splitlines())

    assert size(2) == size(8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_initial_parameters_have_the_shapes_of_the_config(dtype):
    config = VARIANTS["llada-gqa-bias"]
    params = jax.eval_shape(
        lambda key: transformer.init_params(config, key, dtype), jax.random.key(0)
    )
    assert jax.tree.map(lambda leaf: leaf.shape, params) == param_shapes(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_initial_parameters_start_nearly_uniform():
    config = VARIANTS["llada"]
    params = jax.jit(lambda key: transformer.init_params(config, key))(jax.random.key(0))
    out = np.asarray(run(params, config, np.arange(22).reshape(2, 11)))
    assert 0 < np.abs(out).max() < 1.0


def test_tiny_models_cover_the_unit_interval():
    """What `leapjax.testing` promises: thresholds decide something on its models."""
    for config in (VARIANTS["llada"], VARIANTS["dream"]):
        seen = []
        for seed in range(6):
            ids = np.random.default_rng(seed).integers(0, 38, (2, 11))
            ids[:, 4:] = config.mask_token_id
            out = np.asarray(run(tiny_params(config, seed), config, ids)[:, 4:], np.float64)
            seen.append(transcription.softmax(out).max(-1).ravel())
        low, middle, high = np.quantile(np.concatenate(seen), [0.1, 0.5, 0.9])
        assert low < 0.45 < middle < 0.85 < high, (low, middle, high)


def refreshed(params, config, ids, positions, valid, outputs=None):
    """`refresh_states` into a cache of just these rows, but one more that must stay."""
    shape = (config.n_layers, len(ids) + 1, config.n_kv_heads, ids.shape[1], config.head_dim)
    empty = jnp.full(shape, 7.0), jnp.full(shape, 7.0)
    rows = jnp.arange(len(ids), dtype=jnp.int32)
    out, cache = transformer.refresh_states(
        params, config, ids, positions, valid, empty, rows, outputs=outputs
    )
    return out, tuple(store[:, :-1] for store in cache)


def test_rows_go_where_they_are_told():
    rows = 2, 0
    config = VARIANTS["llada"]
    params = tiny_params(config)
    ids = np.random.default_rng(6).integers(0, 30, (2, 10)).astype(np.int32)
    positions = np.broadcast_to(np.arange(10, dtype=np.int32), (2, 10))
    valid = jnp.ones((2, 10), bool)
    _, (wanted, _) = refreshed(params, config, ids, positions, valid)
    store = jnp.full((config.n_layers, 3, *wanted.shape[2:]), 7.0)
    args = (params, config, ids, positions, valid, (store, store), jnp.array(rows, jnp.int32))
    _, (keys, _) = transformer.refresh_states(*args)
    for row in range(3):
        if row in rows:
            assert np.array_equal(keys[:, row], wanted[:, rows.index(row)])
        else:
            assert (keys[:, row] == 7.0).all()


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("llada", 1),
        ("llada", 3),
        ("dream", 1),
        ("dream", 3),
        ("block-causal", 2),
        ("unlike-runs", 4),
    ],
)
def test_some_outputs_are_those_of_the_whole(name, layers):
    config = dataclasses.replace(VARIANTS[name], n_layers=layers)
    params = tiny_params(config)
    ids = np.random.default_rng(5).integers(0, 30, (2, 10)).astype(np.int32)
    valid = jnp.arange(10)[None, :] >= jnp.array([[0], [3]])
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    outputs = jnp.array([[2, 3, 4], [7, 6, 9]], jnp.int32)
    args = (params, config, ids, positions, valid)
    whole, cache = refreshed(*args)
    some, again = refreshed(*args, outputs)
    wanted = np.asarray(whole)[np.arange(2)[:, None], outputs]
    close(some, wanted, 1e-5)
    close(transformer.hidden_states(*args, jnp.float32, outputs), wanted, 1e-5)
    for old, new in zip(cache, again, strict=True):
        close(new, old, 1e-5)
