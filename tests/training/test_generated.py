"""Training on the tasks with dependency."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from leapjax import tasks
from leapjax.tasks import dependency_tokenizer
from leapjax.tasks.dependency import split_of
from leapjax.training import config as training_config
from leapjax.training import layout, setup, trainer

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("train-dependency*.yaml"))
RUN = {
    "task": "dependency",
    "steps": 24,
    "warmup_steps": 2,
    "learning_rate": 5e-3,
    "log_every": 4,
    "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 32},
    "phases": [
        {
            "until": 0,
            "batches": [
                {
                    "share": 1,
                    "batch_size": 16,
                    "prompt_length": 24,
                    "gen_length": 8,
                    "limit": 6,
                    "strata": {"copy": 1, "sums": 1},
                }
            ],
        }
    ],
}


@pytest.fixture(scope="module", autouse=True)
def optax_promotes_dtypes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_rows_are_training_problems_in_wordings_that_are_trained_on(tmp_path):
    config = training_config.make(RUN | {"output": str(tmp_path)})
    start = setup.prepare(config)
    batch, again = (setup.batches(config, start).batch(3) for _ in "ab")
    assert all((batch[name] == again[name]).all() for name in ("ids", "valid", "trainable"))
    tokenizer, found = dependency_tokenizer.build(), set()
    for row, valid in zip(batch["ids"], batch["valid"], strict=True):
        text = tokenizer.decode(row[valid].tolist(), skip_special_tokens=False)
        prompt, answer = text.split("<|user|>")[1].split("<|assistant|>")
        for name in ("copy", "sums"):
            for i, template in enumerate(tasks.get(name).templates):
                before, after = template.split("{question}")
                if prompt.startswith(before) and prompt.endswith(after):
                    question = prompt[len(before) : len(prompt) - len(after)]
                    assert split_of(name, question) == "train" and i < 6
                    total = sum(int(x) for x in question.split("+")) if name == "sums" else 0
                    solved = question if name == "copy" else str(total)
                    assert answer == solved + "<|endoftext|>" * (8 - len(solved))
                    found.add(name)
    assert found == {"copy", "sums"}


def test_a_short_canvas_ends_behind_the_answers_first_eos():
    pairs = [([5, 6, 7], [8, 9]), ([5], [1, 0, 3, 4, 6, 7, 8]), ([5], [])] * 200
    whole = layout.pack(pairs, 4, 8, 0, 0)
    made = layout.shorten(whole, np.random.default_rng(0), 0.5, 0)
    lengths = made["trainable"].sum(axis=1).reshape(-1, 3)
    assert [set(column) for column in lengths.T] == [set(range(3, 9)), {8}, set(range(1, 9))]
    assert 0.4 < (lengths[:, 2] == 8).mean() < 0.7  # half of the rows keep theirs
    gone = whole["valid"] & ~made["valid"]
    assert (gone == (whole["trainable"] & ~made["trainable"])).all()
    assert (whole["ids"] == made["ids"]).all()


def test_a_few_steps_lower_the_loss(tmp_path):
    config = training_config.make(RUN | {"output": str(tmp_path)})
    trainer.train(config, lambda line: None)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_batches_of_the_recipes(path, tmp_path):
    """Every kind of batch of a recipe can be filled, and the model has its recipe's size."""
    config = training_config.make(training_config.read(path) | {"output": str(tmp_path)})
    start = setup.prepare(config)
    count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: start.params(config.seed))))
    assert 0.9e6 < count < 3e6
    for phase in config.phases:
        for shape in phase.batches:
            one = dataclasses.replace(phase, batches=(dataclasses.replace(shape, batch_size=2),))
            batch = setup.batches(dataclasses.replace(config, phases=(one,)), start).batch(0)
            assert batch["ids"].shape[0] == 2
