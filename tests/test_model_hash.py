"""The hash that names a model's weights: of the values alone, wherever and however they lie."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax import checkpoint
from leapjax.jobs import header
from leapjax.models import param_shapes
from leapjax.models.quantize import quantize
from leapjax.ops.split import split_layers
from leapjax.sharding import parse, placements
from leapjax.studies.runner import provenance
from leapjax.testing import tiny_config, tiny_params

VARIANTS = {
    "llada": tiny_config("llada", qkv_bias=True, linear_bias=True, head_bias=True),
    "dream-tied": tiny_config("dream", tie_embeddings=True),
}


def changed(params, leaf="down", layer=1):
    """The parameters with one number changed."""
    layers = dict(params["layers"])
    layers[leaf] = layers[leaf].at[layer, 0, 0].add(1)
    return {**params, "layers": layers}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_the_hash_of_the_checkpoint_they_would_make(name, dtype, tmp_path):
    config = VARIANTS[name]
    params = tiny_params(config, dtype=dtype)
    shapes = checkpoint.flatten(params)
    with checkpoint.Writer(
        tmp_path / "it", {n: (v.shape, np.dtype(v.dtype)) for n, v in shapes.items()}
    ) as writer:
        for leaf, value in shapes.items():
            stacked = leaf.startswith("layers.")
            for i in range(len(value) if stacked else 1):
                writer.write(leaf, i, 0, np.asarray(value[i] if stacked else value))
        want = writer.commit({})
    assert leapjax.LM(params, config, None).model_hash == want
    host = jax.tree.map(np.asarray, params)
    assert checkpoint.hash_params(host, config) == want
    assert leapjax.LM(changed(params), config, None).model_hash != want


@pytest.mark.parametrize("name", VARIANTS)
def test_neither_layout_nor_place_changes_it(name):
    config = VARIANTS[name]
    (place,) = placements(parse("fsdp=2,tensor=2"))
    params = tiny_params(config)
    spread = jax.device_put(params, place.parameters(config, param_shapes(config)))
    assert checkpoint.hash_params(spread, config) == checkpoint.hash_params(params, config)
    for whole in (params, quantize(params, config, "int8")):
        want = checkpoint.hash_params(whole, config)
        # As on a GPU, some of them fused.
        apart = split_layers(jax.tree.map(jnp.copy, whole), config, force=True)
        assert checkpoint.hash_params(apart, config) == want


def test_quantising_and_token_counts_count():
    config = VARIANTS["llada"]
    lm = leapjax.LM(tiny_params(config), config, None)
    small = leapjax.LM(quantize(lm.params, config, "int8"), config, None, quantization="int8")
    counts = np.arange(config.vocab_size)
    known, other = lm.with_token_counts(counts), lm.with_token_counts(counts + 1)
    assert len({lm.model_hash, small.model_hash, known.model_hash, other.model_hash}) == 4
    assert lm.with_token_counts(counts).model_hash == known.model_hash


def test_a_hub_folder_and_its_converted_copy_are_one_model(tmp_path):
    from leapjax import converters

    hub = "tests/golden/llada-b-gqa-bias-bf16"
    converters.convert(hub, tmp_path / "it")
    assert leapjax.load(hub).model_hash == leapjax.load(tmp_path / "it").model_hash


def test_a_job_with_other_weights_is_not_resumed():
    config = VARIANTS["llada"]
    params = tiny_params(config)
    spec = header.JobSpec(input="-", output="x")
    info = header.InputInfo("-")
    told = [
        json.loads(json.dumps(header.describe(leapjax.LM(p, config, None), spec, info)))
        for p in (params, params, changed(params))
    ]
    assert header.differences(told[0], told[1]) == []
    assert header.differences(told[0], told[2]) == ["the model's weights changed"]


def test_answers_are_kept_apart_by_weights_config_and_tokenizer(tmp_path):
    config = VARIANTS["llada"]
    params, options = tiny_params(config), leapjax.DecodeConfig().to_dict()
    twisted = tiny_config("llada", qkv_bias=True, linear_bias=True, head_bias=True, rope_theta=7.0)
    (tmp_path / "tokenizer.json").write_text("{}")
    models = [
        leapjax.LM(params, config, None),
        leapjax.LM(changed(params), config, None),
        leapjax.LM(params, twisted, None),
        leapjax.LM(params, config, None, path=tmp_path),
    ]
    told = {json.dumps(provenance(lm, options, 4), sort_keys=True) for lm in models}
    assert len(told) == 4
