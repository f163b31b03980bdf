"""`--mesh auto` on 8 virtual devices whose memory is a number that the test gives."""

import dataclasses
import json
import math

import jax
import pytest

import leapjax
from leapjax import DecodeConfig, UserError, checkpoint, fit
from leapjax.cli import decode
from leapjax.fit import Auto, candidates, choose
from leapjax.models import param_shapes
from leapjax.models.config import Experts, layer_runs
from leapjax.serve.memory import device_limit, memory_limit
from leapjax.sharding import MeshShape, local_devices, placements
from leapjax.testing import tiny_config
from tests.decoding.test_golden import GOLDEN

# Mostly weights, as models are: 3.2 MB, and a little for 8 rows.
MODEL = tiny_config(d_model=128, head_dim=32, mlp_hidden_size=384, n_layers=4, max_length=64)
JOB = DecodeConfig(gen_length=16, block_length=8)


def stored(model=MODEL):
    shapes = checkpoint.flatten(param_shapes(model))
    return {name: (shape, "float32") for name, shape in shapes.items()}


def chosen(auto=None, model=MODEL, **options):
    auto = auto or Auto(JOB)
    return choose(auto, lambda: stored(model), model, dtype="float32", **options)


@pytest.fixture
def limited(monkeypatch):
    """Sets the bytes that every device has."""

    def set_limit(limit):
        monkeypatch.setattr(fit, "device_limit", lambda device: limit)

    return set_limit


def needs(mesh, auto=None, model=MODEL, quantize=None):
    """What the compiler says that a device needs, whatever it has."""
    auto = auto or Auto(JOB)
    weights = fit.tree(stored(model))
    return fit._needs(
        auto, MeshShape(*mesh), weights, model, "float32", quantize, local_devices(), 1 << 60
    )


def test_nothing_changes_on_one_device_or_where_memory_is_unknown(limited, no_compilation):
    def not_asked():
        raise AssertionError("the weights were looked at")

    with no_compilation():
        assert choose(Auto(JOB), not_asked, MODEL, dtype="float32") is None  # a CPU
        limited(1)
        devices = local_devices()[:1]
        assert choose(Auto(JOB), not_asked, MODEL, dtype="float32", devices=devices) is None
    lm = leapjax.load(GOLDEN / "llada-a")
    assert lm.mesh is None
    with no_compilation():
        assert choose(Auto(), not_asked, lm.config, dtype="float32", devices=devices) is None


@pytest.mark.parametrize(
    "meshes",
    [
        [(8, 1, 1), (4, 1, 2)],
        pytest.param([(8, 1, 1), (2, 1, 4), (1, 2, 4)], marks=pytest.mark.slow),
    ],
)
def test_the_smallest_replica_that_fits_and_the_rest_are_replicas(limited, meshes):
    sizes = {mesh: needs(mesh) for mesh in meshes}
    weights = 4 * sum(math.prod(shape) for shape, _ in stored().values())
    for (data, fsdp, tensor), size in sizes.items():
        assert data * fsdp * tensor == 8 and size > weights / (fsdp * tensor)
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    for mesh, size in sizes.items():
        limited(size)
        assert chosen() == MeshShape(*mesh)


@pytest.mark.slow
def test_fsdp_goes_on_where_tensor_ends(limited):
    odd = dataclasses.replace(MODEL, n_heads=3, n_kv_heads=3)  # 3 heads: tensor is 1 or 3
    assert [m.tensor for m in candidates(8, odd)] == [1, 1, 3, 1, 3, 1]
    limited(needs((4, 2, 1), model=odd))
    assert chosen(model=odd) == MeshShape(data=4, fsdp=2)


def test_experts_are_split_before_heads():
    mixture = Experts(count=4, chosen=2, hidden_size=8)
    runs = layer_runs([None, mixture], 8, MODEL.attention)
    model = dataclasses.replace(MODEL, n_layers=2, layer_runs=runs)
    two = [m for m in candidates(8, model) if m.replica == 2]
    assert [str(m) for m in two[:2]] == [
        "data=4,fsdp=1,expert=2,tensor=1",
        "data=4,fsdp=1,tensor=2",
    ]
    assert {(m.expert, m.fsdp) for m in candidates(8, model) if m.expert > 1} == {
        (2, 1),
        (2, 2),
        (4, 1),  # fsdp=2,expert=4 would split 4 experts into 8
    }


def test_candidates_are_small_first_and_never_too_many():
    meshes = list(candidates(8, MODEL))
    assert meshes[:4] == [MeshShape(8), MeshShape(4, 1, 2), MeshShape(4, 2, 1), MeshShape(2, 1, 4)]
    assert all(m.devices <= 8 for m in meshes)
    assert [m.devices for m in candidates(3, MODEL)] == [3, 2, 2]


def test_few_requests_need_few_replicas(limited):
    limited(1 << 60)
    assert chosen() == MeshShape(data=8)
    assert chosen(Auto(JOB, requests=1)) is None  # the default device
    assert chosen(Auto(JOB, requests=3)) == MeshShape(data=3)
    assert chosen(Auto(JOB, batch_size=2)) == MeshShape(data=2)
    limited(needs((1, 1, 2)))
    assert chosen(Auto(JOB, requests=1)) == MeshShape(tensor=2)


@pytest.mark.slow
def test_a_fixed_batch_must_find_room(limited):
    eight, more = Auto(JOB), Auto(JOB, batch_size=8 * 16)
    assert needs((8, 1, 1), Auto(JOB, batch_size=8 * 8)) == needs((8, 1, 1), eight)
    least = needs((4, 1, 2), more)
    assert needs((8, 1, 1), eight) < needs((8, 1, 1), more)
    assert least < needs((8, 1, 1), more)
    limited(least)
    assert chosen(more) == MeshShape(data=4, tensor=2)


def test_what_fits_nowhere_is_refused_in_a_line(limited, no_compilation):
    limited(1000)
    with no_compilation(), pytest.raises(UserError, match="no room on 8 devices.*int8") as caught:
        chosen()
    assert "\n" not in str(caught.value) and "--batch-size" not in str(caught.value)
    with pytest.raises(UserError, match="--batch-size"):
        chosen(Auto(JOB, batch_size=4))


def test_quantized_weights_need_their_room_while_loading(limited):
    whole, half = needs((8, 1, 1)), needs((8, 1, 1), quantize="int8")
    weights, _ = fit.placed(fit.tree(stored()), placements(MeshShape())[0], MODEL)
    # The rounded ones are there beside the stored ones for a moment.
    assert weights * 1.2 < half < weights * 1.4
    limited(max(whole, half))
    assert chosen(quantize="int8") == MeshShape(data=8)


@pytest.mark.slow
def test_auto_loads_what_it_chose_and_decodes_the_same(limited):
    job = DecodeConfig(gen_length=16, block_length=8)
    prompts = [[1, 2, 3], [4, 5]] * 4
    alone = leapjax.load(GOLDEN / "llada-a").generate(prompts, job)
    limited(1 << 60)
    spread = leapjax.load(GOLDEN / "llada-a", mesh="auto")
    assert spread.mesh == MeshShape(data=8)
    got = spread.generate(prompts, job)
    assert [c.output_ids for c in got] == [c.output_ids for c in alone]


def run_decode(tmp_path, capsys, *flags):
    records = tmp_path / "in.jsonl"
    records.write_text("".join(json.dumps({"prompt_ids": [1, 2, i]}) + "\n" for i in range(9)))
    argv = ["--model", str(GOLDEN / "llada-a"), "--input", str(records), "--gen-length", "16"]
    status = decode.main([*argv, "--block-length", "8", *flags])
    out = capsys.readouterr()
    assert status == 0, out.err
    return out


@pytest.mark.slow
def test_the_command_chooses_says_so_and_answers_alike(limited, tmp_path, capsys):
    plain = run_decode(tmp_path, capsys)
    assert "--mesh" not in plain.err
    limited(1 << 60)
    auto = run_decode(tmp_path, capsys)
    assert "note: --mesh data=8,fsdp=1,tensor=1" in auto.err
    assert auto.out == plain.out
    assert "--mesh" not in run_decode(tmp_path, capsys, "--mesh", "data=2").err
    assert "data=8" in run_decode(tmp_path, capsys, "--mesh", "auto").err


def test_devices_are_taken_in_the_order_of_their_ids(monkeypatch):
    listed = jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda: listed[::-1])
    assert [d.id for d in local_devices()] == sorted(d.id for d in listed)
    groups = [[d.id for d in p.mesh.devices.flat] for p in placements(MeshShape(2, 1, 4))]
    assert groups == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_device_tells_its_limit_or_the_host_does():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 5, "bytes_in_use": 1}

    assert device_limit(Device()) == 5
    assert device_limit(jax.local_devices()[0]) is None
    assert memory_limit() > 1 << 28
