"""Runs of block-causal models: resume, meshes, export, fine-tuning."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import leapjax
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.models.attention import BlockCausal
from leapjax.training import config as training_config
from leapjax.training import setup, trainer
from leapjax.training.export import export
from tests.training.test_meshes import losses
from tests.training.test_trainer import GOLDEN, final_state, load, same, write


@pytest.fixture(scope="module", autouse=True)
def optax_promotes_dtypes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


SHAPE = "num_hidden_layers: 1, num_attention_heads: 2, hidden_size: 32, intermediate_size: 32"
SDAR = f"{{model_type: sdar, head_dim: 8, block_size: 4, {SHAPE}}}"
FAST = f"{{model_type: Fast_dLLM_Qwen, bd_size: 8, {SHAPE}}}"
DRILLS = [{"share": 1, "batch_size": 8, "prompt_length": 10, "gen_length": 12}]
PHASES = [{"until": 0, "batches": [DRILLS[0] | {"strata": {"drill": 1}}]}]


def run(folder, model, mesh=None, until=None):
    folder.mkdir(exist_ok=True)
    changes = {"steps": 4, "log_every": 1, "decode": "{gen_length: 12}"}
    config = load(write(folder, model=model, **changes), phases=PHASES)
    trainer.train(config, lambda line: None, until=until, mesh=mesh)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of SDAR's kind without interruption."""
    return run(tmp_path_factory.mktemp("runs") / "whole", SDAR)


def test_resume_is_exact(whole, tmp_path):
    config = run(tmp_path / "parts", SDAR, until=3)
    assert same(final_state(run(tmp_path / "parts", SDAR))[1], final_state(whole)[1])
    found = losses(tmp_path / "parts")
    assert len(found) == 4 and found[-1] < found[0]
    with pytest.raises(UserError, match="begun with another model"):
        run(tmp_path / "parts", FAST)
    assert config.model["model_type"] == "sdar"


@pytest.mark.slow
def test_losses_on_a_mesh_are_those_of_one_device(whole, tmp_path):
    run(tmp_path / "many", SDAR, "fsdp=2,tensor=2")
    one = Path(whole.output).parent
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(one), rtol=1e-4)


@pytest.mark.slow
def test_losses_of_fast_dllm_v2_on_a_mesh_are_those_of_one_device(tmp_path):
    run(tmp_path / "one", FAST)
    run(tmp_path / "many", FAST, "data=2,fsdp=2,tensor=2")
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-4)


def test_an_export_is_a_checkpoint_of_its_family(whole, tmp_path):
    export(whole.output, tmp_path / "model", dtype="float32")
    lm = leapjax.load(tmp_path / "model")
    trained = final_state(whole)[1]["ema"]
    assert same(lm.params, trained)
    assert (lm.config.family, lm.config.attention) == ("sdar", BlockCausal(4))
    told = {"stop_ids": (lm.config.eos_token_id,)}
    assert lm.config == dataclasses.replace(setup.prepare(whole).model, **told)
    (answer,) = lm.generate(["How many is 3 + 4?"], DecodeConfig(gen_length=8))
    border = len(lm.codec.encode_prompt("How many is 3 + 4?")) + len(answer.output_ids)
    assert len(answer.output_ids) >= 8 and border % 4 == 0
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [lm.config.eos_token_id]}


def test_fine_tuning_fast_dllm_v2_on_a_users_file(tmp_path):
    file = tmp_path / "data.jsonl"
    records = [{"prompt": "What is it?", "response": "A cat."}, {"prompt": "?", "response": "No."}]
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    config = training_config.make(
        {
            "output": str(tmp_path / "out"),
            "init_from": str(GOLDEN / "fast-dllm-v2-a"),
            "data": str(file),
            "steps": 20,
            "batch_size": 2,
            "prompt_length": 64,
            "gen_length": 24,
            "learning_rate": 3e-3,
            "warmup_steps": 2,
            "log_every": 5,
        }
    )
    assert trainer.train(config, lambda line: None).finished
    found = losses(tmp_path)
    assert found[-1] < 0.5 * found[0]
    export(config.output, tmp_path / "tuned")
    assert leapjax.load(tmp_path / "tuned").config == setup.prepare(config).model


def test_decode_options_have_to_go_with_the_model(tmp_path):
    path = write(tmp_path, model=SDAR, decode="{gen_length: 12, policy: low_confidence, steps: 4}")
    with pytest.raises(UserError, match="decode: .*steps"):
        setup.prepare(load(path, phases=PHASES))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{model_type: sdarr}", "did you mean 'sdar'"),
        (
            "{model_type: lladamoe}",
            "balance is 0; a mixture of experts that is trained from scratch",
        ),
        ("{model_type: sdar, d_model: 32}", "model: unknown key 'd_model'"),
        ("{model_type: sdar, block_size: 0}", "block_size is 0"),
    ],
)
def test_bad_models_are_one_line(tmp_path, model, message):
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, model)
    assert "\n" not in str(caught.value)
