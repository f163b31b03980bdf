import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import leapjax
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.training import config as training_config
from leapjax.training import setup, trainer
from leapjax.training.export import export
from leapjax.training.store import Store

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="module", autouse=True)
def optax_promotes_dtypes():
    """Optax raises float32 to int32 powers; our own step is strict in test_objective."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


RUN = """\
output: {output}
task: wordproblems
steps: 12
warmup_steps: 2
optimizer: adamw
learning_rate: 5e-3
ema_decay: 0.9
checkpoint_every: 4
log_every: 4
decode: {{gen_length: 12, block_length: 12}}
model: {{d_model: 32, n_layers: 2, n_heads: 2, mlp_hidden_size: 32}}
phases:
- until: 6
  batches:
  - {{share: 1, batch_size: 8, prompt_length: 10, gen_length: 12, strata: {{drill: 1}}}}
- until: 0
  batches:
  - {{share: 1, batch_size: 4, prompt_length: 28, gen_length: 20, strata: {{easy: 1}}}}
  - {{share: 1, batch_size: 6, prompt_length: 10, gen_length: 12, strata: {{drill: 1}}}}
"""


def write(folder, name="run.yaml", **changes):
    text = RUN.format(output=folder / "out")
    for key, value in changes.items():
        lines = [line for line in text.splitlines() if not line.startswith(f"{key}:")]
        text = "\n".join([f"{key}: {value}", *lines]) + "\n"
    path = folder / name
    path.write_text(text)
    return path


def load(path, **changes):
    return training_config.make(training_config.read(path) | changes, str(path))


def final_state(config):
    start = setup.prepare(config)
    shapes = trainer.init_state(config, start.model, start.params(config.seed))
    store = Store(config.output)
    try:
        return store.restore(shapes)
    finally:
        store.close()


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in leaves)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption: its config, final state and metrics."""
    folder = tmp_path_factory.mktemp("whole")
    config = load(write(folder))
    result = trainer.train(config, lambda line: None)
    assert result.finished and result.step == 12
    step, state = final_state(config)
    assert step == 12
    return config, state, (Path(config.output) / "metrics.jsonl").read_text()


def numbers(metrics):
    """What does not depend on the clock."""
    keep = ("step", "loss", "nats", "grad_norm", "learning_rate")
    return [{k: json.loads(line)[k] for k in keep} for line in metrics.splitlines()]


def test_resume_is_exact(whole, tmp_path):
    config = load(write(tmp_path))
    pieces = [trainer.train(config, lambda line: None, until=n) for n in (5, 6)]
    assert [(r.step, r.finished) for r in pieces] == [(5, False), (6, False)]
    assert trainer.train(config, lambda line: None).finished
    assert same(final_state(config)[1], whole[1])
    steps = [r["step"] for r in numbers((Path(config.output) / "metrics.jsonl").read_text())]
    assert steps == [4, 5, 6, 8, 12]
    assert trainer.train(config, lambda line: None).finished  # nothing left: nothing happens


KILL = """
import os, signal, sys
import orbax.checkpoint as ocp
from leapjax.training import store
save, count = store.Store.save, 0

def halfway(*args, **kwargs):
    # The arrays are written, the rename that makes them a checkpoint has not happened.
    os.kill(os.getpid(), signal.SIGKILL)

def counted(self, step, state):
    global count
    count += 1
    if count == 2:
        from orbax.checkpoint._src.path import atomicity
        for name in dir(atomicity):
            kind = getattr(atomicity, name)
            if isinstance(kind, type) and "finalize" in vars(kind):
                kind.finalize = halfway
    save(self, step, state)

store.Store.save = counted
from leapjax.cli.train import main
sys.exit(main(sys.argv[1:]))
"""


def environment():
    flags = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    return flags | {"PYTHONPATH": str(ROOT)}


def test_a_kill_in_the_middle_of_a_save_loses_nothing(whole, tmp_path):
    path = write(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILL, "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "out" / "checkpoints"
    assert len(list(folder.iterdir())) > 1  # the half-written one lies there
    store = Store(tmp_path / "out")
    assert store.latest() == 4
    store.close()
    again = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stdout and "step 4" in again.stdout
    config = load(path)
    assert same(final_state(config)[1], whole[1])
    # Line for line what the run without a kill wrote.
    assert numbers((tmp_path / "out" / "metrics.jsonl").read_text()) == numbers(whole[2])


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_exits(tmp_path, number):
    path = write(tmp_path, steps=100000, checkpoint_every=100000, log_every=1)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        metrics, limit = tmp_path / "out" / "metrics.jsonl", time.monotonic() + 240
        while time.monotonic() < limit and not (metrics.is_file() and metrics.read_text()):
            time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopped at step" in out and "Traceback" not in err
    store = Store(tmp_path / "out")
    assert store.latest() == json.loads(metrics.read_text().splitlines()[-1])["step"]
    store.close()


def test_loss_falls(tmp_path):
    config = load(
        write(
            tmp_path, optimizer="muon", steps=80, checkpoint_every=80, log_every=10, warmup_steps=5
        ),
        phases=[
            {
                "until": 0,
                "batches": [
                    {
                        "share": 1,
                        "batch_size": 16,
                        "prompt_length": 10,
                        "gen_length": 12,
                        "strata": {"drill": 1},
                    }
                ],
            }
        ],
    )
    trainer.train(config, lambda line: None)
    losses = [r["loss"] for r in numbers((tmp_path / "out" / "metrics.jsonl").read_text())]
    assert losses[-1] < 0.6 * losses[0]


def test_averaged_weights(whole):
    """The average after each step, from the weights of each step."""
    config = whole[0]
    start = setup.prepare(config)
    step, source = trainer.make_step(config, start.model), setup.batches(config, start)
    state = trainer.init_state(config, start.model, start.params(config.seed))
    ema = np.asarray(state["ema"]["final_norm"], np.float64)
    for number in range(3):
        batch = source.batch(number)
        window = batch.pop("window")
        state, _ = step(state, batch, np.int32(number), window)
        decay = min(0.9, (1 + number) / (10 + number))
        ema = decay * ema + (1 - decay) * np.asarray(state["params"]["final_norm"])
        np.testing.assert_allclose(state["ema"]["final_norm"], ema, rtol=1e-6)


def test_export_is_a_model_that_decodes(whole, tmp_path):
    card = tmp_path / "card.md"
    card.write_text("# A card\n")
    step, digest = export(whole[0].output, tmp_path / "model", dtype="float32", card=card)
    assert step == 12
    lm = leapjax.load(tmp_path / "model")
    assert same(lm.params, whole[1]["ema"])
    assert (tmp_path / "model" / "README.md").read_text() == "# A card\n"
    assert lm.model_hash == digest
    decode = (tmp_path / "model" / "decode.yaml").read_text()
    assert decode == "gen_length: 12\nblock_length: 12\n"
    out = lm.generate(["How many is 3 + 4?"], DecodeConfig(gen_length=8, block_length=8))
    assert len(out[0].output_ids) == 8
    with pytest.raises(UserError, match="exists"):
        export(whole[0].output, tmp_path / "model")


@pytest.mark.parametrize("model", ["llada-a", "dream-a"])
def test_fine_tuning_a_checkpoint_on_a_users_file(model, tmp_path):
    records = [
        {"prompt": "What is it?", "response": "A cat."},
        {
            "messages": [
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "A dog."},
            ]
        },
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    config = training_config.make(
        {
            "output": str(tmp_path / "out"),
            "init_from": str(GOLDEN / model),
            "data": str(file),
            "steps": 30,
            "batch_size": 2,
            "prompt_length": 64,
            "gen_length": 24,
            "learning_rate": 3e-3,
            "warmup_steps": 2,
            "log_every": 10,
            "checkpoint_every": 30,
        }
    )
    assert trainer.train(config, lambda line: None).finished
    losses = [r["loss"] for r in numbers((tmp_path / "out" / "metrics.jsonl").read_text())]
    assert losses[-1] < 0.5 * losses[0]
    export(config.output, tmp_path / "tuned")
    tuned = leapjax.load(tmp_path / "tuned")
    assert tuned.generate(["What is it?"], DecodeConfig(gen_length=8, block_length=8))


def test_texts_are_cut_up_and_end_in_eos(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": " ".join(map(str, range(60)))}) + "\n")
    config = training_config.make(
        {
            "output": str(tmp_path / "out"),
            "init_from": str(GOLDEN / "llada-a"),
            "data": str(file),
            "steps": 1,
            "batch_size": 3,
            "sequence_length": 32,
        }
    )
    start = setup.prepare(config)
    rows = setup.batches(config, start)
    ids = start.codec.encode(" ".join(map(str, range(60))), control=False) + [
        start.model.eos_token_id
    ]
    assert sum(rows.rows, []) == ids
    count = len(rows.rows)
    seen = [tuple(row.tolist()) for step in range(count) for row in rows.batch(step)["ids"]]
    for epoch in range(3):  # every row once
        assert len(set(seen[epoch * count : (epoch + 1) * count])) == count
    np.testing.assert_array_equal(rows.batch(1)["ids"], rows.batch(1)["ids"])
    assert trainer.train(config, lambda line: None).finished


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"prompt": "a"}', "line 2: expected prompt and response, messages, or text"),
        ('{"prompt": "a", "response": 3}', "line 2: the response should be a text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: messages should end with"),
        ('{"text": "a"}', "line 2: the file mixes texts with prompts"),
        ('{"prompt": "a", "response": "%s"}' % ("a b " * 99), "line 2: a prompt of .* do not fit"),
    ],
)
def test_a_bad_record_names_its_line(tmp_path, line, message):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n' + line + "\n")
    config = training_config.make(
        {
            "output": str(tmp_path / "out"),
            "init_from": str(GOLDEN / "llada-a"),
            "data": str(file),
            "prompt_length": 64,
            "gen_length": 16,
        }
    )
    with pytest.raises(UserError, match=message):
        trainer.train(config, lambda line: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepps": 3}, "unknown key 'stepps'; did you mean 'steps'"),
        ({"steps": 0}, "steps is 0, expected >= 1"),
        ({"steps": "many"}, "steps is 'many'; expected a whole number"),
        ({"optimizer": "adamq"}, "did you mean 'adamw'"),
        ({"task": ""}, "either task .* or data"),
        ({"init_from": "x"}, "either model .* or init_from"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"model": {"d_modle": 3}}, "did you mean 'd_model'"),
        ({"decode": {"gen_lenght": 3}}, "did you mean 'gen_length'"),
        ({"decode": {"gen_length": 5}}, "block_length"),
        ({"phases": [{"until": 0}]}, "phase 1: batches is missing"),
        ({"phases": [{"until": 0, "batches": [{"shar": 1}]}]}, "did you mean 'share'"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_bad_configs_are_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        trainer.train(load(write(tmp_path), **changes), lambda line: None)
    assert "\n" not in str(caught.value)


def test_a_resumed_run_keeps_its_model_and_may_change_its_length(whole, tmp_path):
    config = load(write(tmp_path))
    trainer.train(config, lambda line: None, until=4)
    with pytest.raises(UserError, match="begun with another seed"):
        trainer.train(load(write(tmp_path), seed=5), lambda line: None)
    lines = []
    assert trainer.train(load(write(tmp_path), steps=5), lines.append).finished
    assert "steps changed since this run began" in lines[0]


def test_the_command_line(tmp_path, capsys):
    from leapjax.cli.train import main

    path = write(tmp_path)
    assert main(["--config", str(path), "--steps", "2"]) == 0
    out = tmp_path / "out"
    assert main(["--export", str(tmp_path / "model"), "--output", str(out)]) == 0
    assert "weights of step 2 in bfloat16" in capsys.readouterr().out
    for arguments in (
        ["--config", str(tmp_path / "none.yaml")],
        ["--config", str(path), "--card", "x"],
        ["--export", str(tmp_path / "model"), "--output", str(out)],
        ["--export", str(tmp_path / "model2")],
        ["--export", str(tmp_path / "model2"), "--output", str(tmp_path / "empty")],
        ["--config", str(path), "--steps", "two"],
    ):
        assert main(arguments) == 2, arguments
        err = capsys.readouterr().err
        assert err.startswith("leapjax train: error: ") and err.count("\n") == 1
