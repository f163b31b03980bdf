"""The family `chain`: its conditionals equal enumeration, and it decodes like any other model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax import checkpoint, sharding
from leapjax.likelihood import likelihoods
from leapjax.models import chain
from leapjax.models.quantize import quantize
from leapjax.testing import tiny_config, tiny_params
from leapjax.training import setup
from leapjax.training.config import TrainConfig
from tests.models.enumeration import conditionals, joint

TOKENS, LENGTH = 4, 10
CONFIG = tiny_config("chain", vocab_size=TOKENS + 2)
MASK, PAD = CONFIG.mask_token_id, CONFIG.pad_token_id
RAW = {"model_type": "chain", "states": 3, "vocab_size": 6, "mask_token_id": 5, "eos_token_id": 4}
RAW |= {"max_position_embeddings": CONFIG.max_length}


def patterns(rng, rows=16):
    """Rows with pads, masks, and tokens: ids and valid, (rows, LENGTH) each."""
    ids, valid = np.full((rows, LENGTH), PAD), np.zeros((rows, LENGTH), bool)
    for b in range(rows):
        n = LENGTH if b % 2 == 0 else int(rng.integers(1, LENGTH + 1))
        own = np.where(
            rng.random(n) < rng.choice([0.2, 0.5, 0.9]), MASK, rng.integers(TOKENS, size=n)
        )
        # Left of a row, right of it, or between its tokens.
        places = [np.arange(LENGTH - n, LENGTH), np.arange(n)]
        places.append(np.sort(rng.permutation(LENGTH)[:n]))
        at = places[b % 3]
        ids[b, at], valid[b, at] = own, True
    return ids.astype(np.int32), valid


@pytest.mark.parametrize("logit_std", [4.0, 12.0])
def test_conditionals_equal_enumeration(logit_std):
    """Whatever is given or decided, with pads anywhere; the shadow leaves out each own token."""
    place = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), (16, LENGTH))
    shadowed = jax.jit(
        lambda p, ids, valid: chain.shadowed_states(
            p, CONFIG, ids, place, valid, jnp.float32, place, place
        )
    )
    rng = np.random.default_rng(0)
    for seed in range(2):
        params = tiny_params(CONFIG, seed, logit_std=logit_std)
        tables = [joint(params, TOKENS, n) for n in range(1, LENGTH + 1)]
        ids, valid = patterns(rng)
        got = leapjax.LM(params, CONFIG, codec=None).logits(ids, valid)
        plain, shadow = shadowed(params, ids, valid)
        np.testing.assert_array_equal(got, plain)
        got, shadow = np.exp(got), np.exp(shadow)
        for b in range(len(ids)):
            own = ids[b, valid[b]]
            table = tables[len(own) - 1]
            want = conditionals(table, own, MASK)
            np.testing.assert_allclose(got[b, valid[b], :TOKENS], want, atol=1e-6, rtol=0)
            for i in range(len(own)):
                if own[i] != MASK:
                    hidden = np.where(np.arange(len(own)) == i, MASK, own)
                    want[i] = conditionals(table, hidden, MASK, only=i)[i]
            np.testing.assert_allclose(shadow[b, valid[b], :TOKENS], want, atol=1e-6, rtol=0)
        assert not got[..., TOKENS:][valid & (ids == MASK)].any()


def test_ratios_that_underflow():
    """Two chains that never meet: 300 tokens speak for one, then 310 for the other."""
    off = chain.FLOOR
    logits = {
        "initial": [0.0, 0.0],
        "transition": [[0.0, off], [off, 0.0]],
        "emission": [[1.0, 0.0, 0.0, 0.0, off, off], [0.0, 1.0, 0.0, 0.0, off, off]],
    }
    config = tiny_config("chain", vocab_size=6, d_model=2)
    lm = leapjax.LM(chain.init_params(config, logits), config, codec=None)
    ids = [0] * 300 + [1] * 310 + [5]
    got = np.exp(lm.logits(ids)[0, -1, :4])
    second = 1 / (1 + np.exp(-10))  # e^10 to 1 for the second chain
    each = np.exp([[1, 0, 0, 0], [0, 1, 0, 0]]) / (np.e + 3)
    np.testing.assert_allclose(got, (1 - second) * each[0] + second * each[1], atol=2e-5)


def test_evidence_without_probability_gives_numbers():
    """The eos is emitted by no state, and is no evidence."""
    lm = leapjax.LM(tiny_params(CONFIG), CONFIG, codec=None)
    got = lm.logits([[1, PAD, MASK], [1, MASK, MASK]])
    assert np.isfinite(got).all()
    np.testing.assert_allclose(np.exp(got[0, 2]), np.exp(got[1, 2]), atol=1e-3)


def test_decodes_like_any_model(tmp_path):
    """From a checkpoint; the greedy decode is the one of the enumerated conditionals."""
    params = tiny_params(CONFIG, 3)
    checkpoint.save(tmp_path / "chain", params, RAW, {})
    lm = leapjax.load(tmp_path / "chain", mesh="data=2")
    assert lm.config == CONFIG
    assert lm.model_hash == leapjax.LM(params, CONFIG, codec=None).model_hash
    prompts = [[0, 1, 2], [3]]
    answers = lm.generate(prompts, policy="low_confidence", gen_length=6, block_length=3)
    for prompt, answer in zip(prompts, answers, strict=True):
        table, canvas = joint(params, TOKENS, len(prompt) + 6), prompt + [MASK] * 6
        for step in range(6):
            at = len(prompt) + answer.commit_step.index(step)
            sure = conditionals(table, canvas, MASK)
            window = range(len(prompt) + step // 3 * 3, len(prompt) + step // 3 * 3 + 3)
            best = max(sure[i].max() for i in window if canvas[i] == MASK)
            assert sure[at].max() > best - 1e-6
            canvas[at] = int(sure[at].argmax())
        assert answer.output_ids == canvas[len(prompt) :]
    [wino] = lm.generate([[0]], policy="wino", gen_length=6, block_length=6)
    assert MASK not in wino.output_ids


def test_the_bound_of_the_likelihood_is_exact():
    """Of a model whose conditionals agree with each other, in expectation over the masks."""
    params = tiny_params(CONFIG, 1, logit_std=2.0)
    lm = leapjax.LM(params, CONFIG, codec=None)
    [got] = likelihoods(lm, [([0, 1], [2, 3, 1])], samples=512)
    table = joint(params, TOKENS, 5)
    exact = np.log(table[0, 1, 2, 3, 1] / table[0, 1].sum())
    assert abs(got.bound - exact) < 4 * got.error


def refused(tmp_path):
    lm = leapjax.LM(tiny_params(CONFIG), CONFIG, codec=None)
    path = str(tmp_path / "chain")
    checkpoint.save(path, lm.params, RAW, {})
    return {
        "cache is dual, but the model's attention is absent; choose cache none": lambda: (
            lm.generate([[0]], cache="dual", gen_length=4, block_length=4)
        ),
        "quantize is int8, but a chain has no matrices": lambda: quantize(
            lm.params, CONFIG, "int8"
        ),
        "tensor splits heads and MLPs, and a chain has none": lambda: sharding.check(
            sharding.parse("tensor=2"), CONFIG
        ),
        "is a chain, which leapjax.chains.fit fits": lambda: setup.prepare(
            TrainConfig(init_from=path, output=path, data=path)
        ),
        "key 'states' is missing": lambda: leapjax.models.parse_config(
            {n: v for n, v in RAW.items() if n != "states"}
        ),
        'key "layers" (2) is not one': lambda: leapjax.models.parse_config(RAW | {"layers": 2}),
    }


def test_what_a_chain_lacks_is_refused_in_one_line(tmp_path):
    for message, action in refused(tmp_path).items():
        with pytest.raises(leapjax.UserError) as e:
            action()
        assert message in str(e.value) and "\n" not in str(e.value)
