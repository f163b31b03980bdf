"""A model through Flax NNX: the same logits, trained there, decoded here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import leapjax
from leapjax import DecodeConfig
from leapjax.bridge import Transformer, from_nnx, to_nnx
from leapjax.errors import UserError
from leapjax.testing import tiny_config, tiny_params

# Dream has all that LLaDA has, and biases, grouped heads and a shift of its own.
EVERY = [pytest.param("llada", marks=pytest.mark.slow), "dream"]
CONFIG = DecodeConfig(gen_length=8, block_length=4)


@pytest.fixture(params=["dream"])
def lm(request):
    model = tiny_config(request.param)
    return leapjax.LM(tiny_params(model), model, codec=None)


@pytest.mark.parametrize("lm", EVERY, indirect=True)
def test_there_and_back_is_exact(lm):
    back = from_nnx(to_nnx(lm), lm)
    assert jax.tree.structure(back.params) == jax.tree.structure(lm.params)
    for one, other in zip(jax.tree.leaves(lm.params), jax.tree.leaves(back.params), strict=True):
        np.testing.assert_array_equal(one, other)
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    # Products are XLA's there, the kernels' here.
    np.testing.assert_allclose(to_nnx(lm)(ids), lm.logits(ids), atol=2e-5)
    assert back.generate([[1, 2, 3]], CONFIG) == lm.generate([[1, 2, 3]], CONFIG)


@pytest.mark.parametrize("lm", EVERY, indirect=True)
def test_a_model_trained_with_nnx_decodes_what_it_learnt(lm):
    """Five ids to learn by heart, behind any prompt."""
    module, model = to_nnx(lm), lm.config
    optimizer = nnx.Optimizer(module, optax.adam(3e-2), wrt=nnx.Param)
    ids = jnp.asarray([[1, 2, 3] + [model.mask_token_id] * 5], jnp.int32)
    want = jnp.asarray([7, 11, 5, 11, 9], jnp.int32)
    where = slice(2, 7) if model.shift_logits else slice(3, 8)  # Dream: predicted one earlier

    @nnx.jit
    def train(module, optimizer):
        def loss(module):
            logits = module(ids)[0, where]
            return optax.softmax_cross_entropy_with_integer_labels(logits, want).mean()

        value, grads = nnx.value_and_grad(loss)(module)
        optimizer.update(module, grads)
        return value

    before = jax.tree.map(np.asarray, lm.params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its counter's type
        for _ in range(60):
            value = train(module, optimizer)
    assert value < 0.1
    learnt = from_nnx(module, lm)
    (made,) = learnt.generate([[1, 2, 3]], DecodeConfig(gen_length=5, block_length=5))
    assert made.output_ids == want.tolist()
    # The model that it came from is as it was.
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, lm.params))


def test_what_does_not_fit_is_refused_by_name(lm):
    params = dict(lm.params)
    params["extra"] = jnp.zeros(3)
    with pytest.raises(UserError, match="parameter extra is not one"):
        from_nnx(Transformer(params, lm.config), lm)
    del params["extra"], params["final_norm"]
    with pytest.raises(UserError, match="parameter final_norm is missing"):
        from_nnx(Transformer(params, lm.config), lm)
    with pytest.raises(UserError, match="final_norm has shape .3,., expected .16,."):
        from_nnx(Transformer(params | {"final_norm": jnp.zeros(3)}, lm.config), lm)
