"""What is around the decode, with mixtures of experts: commands, studies, training, NNX, files."""

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import leapjax
from leapjax import DecodeConfig, UserError, bridge
from leapjax.cli import main as commands
from leapjax.jobs import job
from leapjax.jobs.loop import Stopped
from leapjax.models.attention import Bidirectional
from leapjax.models.config import Experts, layer_runs
from leapjax.sharding import check, parse
from leapjax.testing import tiny_config, tiny_params
from leapjax.training import config as training_config
from leapjax.training import optimizer, trainer
from leapjax.training.export import export
from leapjax.training.placement import TrainingPlacement

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {
    "llada_moe": GOLDEN / "llada-moe-a",
    "llada2": GOLDEN / "llada2-a",
    "sdar_moe": GOLDEN / "sdar-moe-a",
}
SMALL = {"gen_length": 16, "block_length": 8}
FLAGS = ["--gen-length", "16", "--block-length", "8"]
RECORDS = [
    {"id": "text", "prompt": "Hal has 4 pens."},
    {"id": "block", "prompt_ids": [4, 9, 2, 7, 1, 8, 3, 6]},
    {"id": "short", "prompt_ids": [5], "topic": "pens"},
    {"id": "gap", "infill_ids": [3, -1, 5, -1, 7, 7, 7, 7, *[9] * 8, 4, 4, -1]},
    {"id": "turn", "messages": [{"role": "user", "content": "Hi"}]},
]

# A block that is not the checkpoint's is allowed, with a note.
pytestmark = pytest.mark.filterwarnings("ignore:block_length is 8; the model was trained with")


@pytest.fixture(params=FOLDERS)
def family(request):
    return request.param


def run(argv, capsys):
    assert commands.main(argv) == 0, capsys.readouterr().err
    return capsys.readouterr()


def records(lm):
    found = json.loads(json.dumps(RECORDS))
    for record in found:
        if "infill_ids" in record:
            mask = lm.config.mask_token_id
            record["infill_ids"] = [mask if i < 0 else i for i in record["infill_ids"]]
    return found


@pytest.mark.slow
def test_records_of_every_kind_in_a_pipe(family, monkeypatch, capsys):
    """Each answer is that of the record alone, from Python."""
    lm = leapjax.load(FOLDERS[family])
    lines = "".join(json.dumps(r) + "\n" for r in records(lm))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    argv = ["decode", "--model", str(FOLDERS[family]), "--input", "-", "--output", "-", *FLAGS]
    got = [json.loads(line) for line in run(argv, capsys).out.splitlines()]
    want = [next(lm.stream([r], batch_size=1, **SMALL)) for r in records(lm)]
    for one, alone in zip(got, want, strict=True):
        for name in ("id", "text", "output_ids", "steps", "nfe", "commit_step"):
            assert one[name] == getattr(alone, name), (one["id"], name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "top_p": 0.9, "seed": 5},
        {"cfg_scale": 0.5},
        {"policy": "low_confidence"},
        {"confidence_eos_eot_inf": True},
    ],
    ids=str,
)
def test_rows_alone_and_together_with_options(family, options):
    """Three slots, so that rows are refilled; shared prefixes among them."""
    lm = leapjax.load(FOLDERS[family])
    base = [7] * 40
    asked = [{"id": n, "prompt_ids": [*base[: 8 * n], n + 1]} for n in (0, 5, 3, 5, 1, 4)]
    asked = [record | {"id": i} for i, record in enumerate(asked)]
    alone = [lm.generate([r], batch_size=3, **SMALL, **options)[0] for r in asked]
    assert lm.generate(asked, batch_size=3, **SMALL, **options) == alone


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"quantize": "int8"}, {"dtype": "bfloat16"}], ids=str)
def test_rows_alone_and_together_in_other_number_types(family, how):
    lm = leapjax.load(FOLDERS[family], **how)
    asked = [{"id": n, "prompt_ids": [n + 1] * k} for n, k in enumerate((3, 8, 19))]
    alone = [lm.generate([r], batch_size=3, **SMALL)[0] for r in asked]
    assert lm.generate(asked, batch_size=3, **SMALL) == alone


@pytest.mark.slow
def test_a_job_that_was_stopped_is_resumed(family, tmp_path):
    lines = [json.dumps({"id": str(n), "prompt_ids": [n + 1] * (n + 2)}) for n in range(7)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    lm = leapjax.load(FOLDERS[family])

    def spec(name, **more):
        fields = {"input": str(tmp_path / "in.jsonl"), "output": str(tmp_path / name)}
        options = DecodeConfig(**SMALL).for_model(lm.config)
        return job.JobSpec(**fields, options=options, shard_size=2, batch_size=2, **more)

    def outputs(name):
        return [part.read_text() for part in sorted((tmp_path / name).glob("part-*.jsonl"))]

    job.run(lm, spec("whole"))
    looks = iter([None] * 12)
    with pytest.raises(Stopped):
        job.run(lm, spec("out"), stop=lambda: next(looks, 15))
    before = outputs("out")
    job.run(lm, spec("out", resume=True))
    assert before != outputs("out") == outputs("whole") and len(outputs("whole")) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "--policies", "greedy,localleap", "--limit", "2"],
        ["ablate", "--grid", "threshold=0.8,0.9", "--limit", "2"],
        ["calibrate", "--task", "wordproblems", "--limit", "12", "--max-disagreement", "0.9"],
    ],
    ids=lambda argv: argv[0],
)
def test_studies(family, argv, tmp_path, capsys):
    common = ["--model", str(FOLDERS[family]), "--gen-length", "32"]
    assert commands.main([*argv, *common, "--output", str(tmp_path / "o")]) in (0, 1)
    assert list((tmp_path / "o").glob("*.json")) and capsys.readouterr().out


@pytest.mark.slow
def test_an_analysis(family, tmp_path, capsys):
    """Of a bidirectional model; a block-causal one is refused in one line."""
    argv = ["analyze", "--model", str(FOLDERS[family]), "--output", str(tmp_path / "o")]
    status = commands.main([*argv, "--gen-length", "32", "--limit", "2"])
    err = capsys.readouterr().err
    if family == "llada_moe":
        assert status == 0, err
        assert list((tmp_path / "o").glob("*.json"))
    else:
        assert status == 2 and "the model is block-causal" in err and err.count("\n") == 1
        assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["html", "gif", "png"])
def test_a_trace(family, ending, tmp_path, capsys):
    path = tmp_path / f"t.{ending}"
    argv = ["decode", "--model", str(FOLDERS[family]), "--prompt", "Why?", *FLAGS]
    run([*argv, "--trace", str(path)], capsys)
    assert path.stat().st_size > 1000


@pytest.mark.slow
def test_a_chat(family, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/quit\n"))
    out = run(["decode", "--model", str(FOLDERS[family]), "--chat", *FLAGS], capsys).out
    (answer,) = leapjax.load(FOLDERS[family]).generate(["Hi"], **SMALL)
    assert answer.text in out


@pytest.mark.slow
def test_ray_decodes_what_the_command_decodes(family):
    pa_json = pytest.importorskip("pyarrow.json", reason="needs Ray Data (extra ray)")
    from leapjax.integrations.ray import Decoder

    made = [{"id": str(n), "prompt_ids": [n] * n} for n in (3, 8, 17)]
    table = pa_json.read_json(io.BytesIO("".join(json.dumps(r) + "\n" for r in made).encode()))
    got = Decoder(str(FOLDERS[family]), rows=2, **SMALL)(table).to_pylist()
    want = leapjax.load(FOLDERS[family]).generate(made, **SMALL)
    assert [r["output_ids"] for r in got] == [c.output_ids for c in want]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [None, "fsdp=2", "expert=2,tensor=2"])
def test_files_there_and_back(family, mesh, tmp_path, capsys):
    """Hub -> leapjax checkpoint (ours and Orbax's) -> devices -> hub."""
    ours, again = tmp_path / "ours", tmp_path / "again"
    run(["convert", str(FOLDERS[family]), str(ours)], capsys)
    hub, lm = leapjax.load(FOLDERS[family]), leapjax.load(ours, mesh=mesh)
    assert lm.config == hub.config and lm.model_hash == hub.model_hash
    for got, want in zip(jax.tree.leaves(lm.params), jax.tree.leaves(hub.params), strict=True):
        np.testing.assert_array_equal(got, want)
    ids = np.arange(20, dtype=np.int32)[None] % 30
    wanted = hub.logits(ids)
    np.testing.assert_allclose(lm.logits(ids), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    run(["convert", str(ours), str(again), "--to-hub"], capsys)
    assert leapjax.load(again).model_hash == hub.model_hash


LARGE = Experts(16, 3, 48, normalize=True)  # multiplied tile by tile; not so where trained


def test_an_nnx_module_has_gradients_of_router_and_experts():
    model = tiny_config("llada_moe", layer_runs=layer_runs([LARGE] * 2, 24, Bidirectional()))
    lm = leapjax.LM(tiny_params(model), model, codec=None)
    module = bridge.to_nnx(lm)
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    np.testing.assert_allclose(module(ids), lm.logits(ids), atol=2e-5)
    found = nnx.grad(lambda m: (m(ids) ** 2).mean())(module)
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(found)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    back = bridge.from_nnx(module, lm)
    jax.tree.map(np.testing.assert_array_equal, back.params, lm.params)


def test_muon_takes_each_expert_as_a_matrix_of_its_own():
    model = tiny_config("llada_moe")
    params = tiny_params(model)
    gradient = tiny_params(model, 1)
    rule = optimizer.make("muon", model, 1e-2, 0, 10, 0.0, 1e9)

    @jax.jit
    def updates(params, gradient):
        return rule.update(gradient, rule.init(params), params)[0]["layers"]["experts_up"]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        whole = updates(params, gradient)
        # Another expert's gradient changes nothing of this one's direction.
        other = gradient["layers"]["experts_up"].at[:, 1:].multiply(3.0)
        layers = gradient["layers"] | {"experts_up": other}
        changed = updates(params, gradient | {"layers": layers})
    np.testing.assert_allclose(whole[:, 0], changed[:, 0], rtol=1e-3, atol=1e-7)
    assert np.abs(whole[:, 0]).max() > 0


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=() if f == "llada_moe" else pytest.mark.slow) for f in FOLDERS],
    indirect=True,
)
def test_fine_tuning_moves_routers_and_experts(family, tmp_path):
    file = tmp_path / "data.jsonl"
    lines = [{"prompt": "What is it?", "response": "A cat."}, {"prompt": "?", "response": "No."}]
    file.write_text("".join(json.dumps(r) + "\n" for r in lines))
    config = training_config.make(
        {
            "output": str(tmp_path / "out"),
            "init_from": str(FOLDERS[family]),
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
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert trainer.train(config, lambda line: None).finished
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.6 * losses[0]
    export(config.output, tmp_path / "tuned")
    tuned, before = leapjax.load(tmp_path / "tuned"), leapjax.load(FOLDERS[family])
    assert tuned.config == before.config
    for run_ in tuned.config.runs:
        for name in ("router", "experts_up") if run_.experts else ():
            assert not np.array_equal(tuned.params[run_.name][name], before.params[run_.name][name])


def test_a_mesh_axis_of_experts_needs_experts():
    message = "expert splits experts, and this model .llada. has none; use tensor or fsdp"
    with pytest.raises(UserError, match=message):
        leapjax.load(GOLDEN / "llada-a", mesh="expert=2")
    with pytest.raises(UserError, match=message):
        TrainingPlacement(parse("data=2,expert=2"), tiny_config())


def test_a_mesh_axis_of_experts_divides_them():
    config = tiny_config("sdar_moe")
    check(parse("fsdp=2,expert=4"), config)
    with pytest.raises(UserError, match="8 are no multiple of 3; choose a divisor"):
        check(parse("expert=3"), config)
    with pytest.raises(UserError, match="8 are no multiple of 16; choose a divisor"):
        TrainingPlacement(parse("fsdp=2,expert=8"), config)
