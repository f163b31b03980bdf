"""Weight-only int8: rounding, against a direct computation, and decoding with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax.errors import UserError
from leapjax.models import transformer
from leapjax.models.quantize import quantize
from leapjax.testing import tiny_config, tiny_params

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def widened(params):
    """The float matrices that quantised ones stand for."""
    layers = dict(params["layers"])
    for name in MATRICES:
        layers[name] = np.float32(layers[name]) * layers.pop(f"{name}_scale")[:, None, :]
    out = {**params, "layers": layers}
    if "head_scale" in out:
        out["head"] = np.float32(out["head"]) * out.pop("head_scale")[:, None]
    return jax.tree.map(jnp.asarray, out)


def logits(params, config, ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    valid = jnp.ones(ids.shape, bool)
    hidden = transformer.hidden_states(params, config, ids, positions, valid)
    return np.asarray(transformer.head(params, config, hidden))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_logits_are_those_of_the_rounded_matrices(family, dtype):
    config = tiny_config(family, tie_embeddings=family == "dream")
    rounded = quantize(tiny_params(config, dtype=dtype), config, "int8")
    ids = jnp.array([[1, 2, 3, 4, 5]], jnp.int32)
    wanted = logits(widened(rounded), config, ids)
    np.testing.assert_allclose(logits(rounded, config, ids), wanted, rtol=2e-4, atol=2e-4)


def test_rounding_is_to_the_nearest_of_255_values_per_output():
    config = tiny_config()
    params = tiny_params(config)
    rounded = quantize(params, config, "int8")
    for name in MATRICES:
        whole, scale = rounded["layers"][name], rounded["layers"][f"{name}_scale"]
        assert whole.dtype == jnp.int8 and scale.dtype == jnp.float32
        original = np.asarray(params["layers"][name])
        np.testing.assert_allclose(scale, np.abs(original).max(axis=1) / 127, rtol=1e-6)
        error = np.abs(np.float32(whole) * np.asarray(scale)[:, None, :] - original)
        assert (error <= 0.501 * np.asarray(scale)[:, None, :]).all()
    assert rounded["embed"] is params["embed"]


def test_a_channel_of_zeros_stays_zero():
    config = tiny_config()
    params = tiny_params(config)
    params["layers"]["q"] = params["layers"]["q"].at[:, :, 0].set(0.0)
    rounded = quantize(params, config, "int8")
    assert not np.asarray(rounded["layers"]["q"])[:, :, 0].any()
    assert np.isfinite(np.asarray(rounded["layers"]["q_scale"])).all()


def test_decodes_with_every_cache():
    config = tiny_config()
    params = quantize(tiny_params(config), config, "int8")
    quantised = leapjax.LM(params, config, codec=None, quantization="int8")
    wide = leapjax.LM(widened(params), config, codec=None)
    for cache in ("none", "dual"):
        job = leapjax.DecodeConfig(gen_length=8, block_length=4, cache=cache)
        got = quantised.generate([[1, 2, 3]], job)[0]
        assert got.output_ids == wide.generate([[1, 2, 3]], job)[0].output_ids


def test_load_quantises_and_says_so():
    lm = leapjax.load(quantize="int8")
    assert lm.quantization == "int8" and lm.params["layers"]["q"].dtype == jnp.int8
    with pytest.raises(UserError, match="int4.*int8"):
        leapjax.load(quantize="int4")
