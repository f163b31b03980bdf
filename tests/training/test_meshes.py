"""A run spread over devices computes what one device computes, and meshes may change midway."""

import json

import jax
import numpy as np
import pytest

from leapjax.errors import UserError
from leapjax.sharding import parse
from leapjax.testing import tiny_config
from leapjax.training import config as training_config
from leapjax.training import setup, trainer
from leapjax.training.placement import TrainingPlacement
from leapjax.training.store import Store
from tests.training.test_trainer import ROOT, write


@pytest.fixture(scope="module", autouse=True)
def optax_promotes_dtypes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(folder, mesh=None, until=None, **changes):
    folder.mkdir(exist_ok=True)
    path = write(folder, **changes)
    config = training_config.make(training_config.read(path), str(path))
    trainer.train(config, lambda line: None, until=until, mesh=mesh)
    return config


def losses(folder):
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_meshes_change_in_the_middle_of_a_run(tmp_path):
    run(tmp_path / "one")
    for done, mesh in zip(
        (4, 8, 12), ("fsdp=2,tensor=2", "data=2,fsdp=2,tensor=2", None), strict=True
    ):
        run(tmp_path / "many", mesh, done)
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "optimizer"), [("data=2,fsdp=2,tensor=2", "muon"), ("data=3", "adamw")]
)
def test_losses_are_those_of_one_device(mesh, optimizer, tmp_path):
    run(tmp_path / "one", optimizer=optimizer)
    run(tmp_path / "many", mesh, optimizer=optimizer)
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-4)


def test_weights_and_moments_are_split_alike(tmp_path):
    config = run(tmp_path / "run", "data=2,fsdp=2,tensor=2", 4)
    start = setup.prepare(config)
    placement = TrainingPlacement(parse("data=2,fsdp=2,tensor=2"), start.model)
    shapes = jax.eval_shape(
        lambda: trainer.init_state(config, start.model, start.params(config.seed))
    )
    where = placement.state(shapes)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
    )
    store = Store(config.output)
    step, state = store.restore(state)
    store.close()
    assert step == 4
    split = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if path[-1] == jax.tree_util.DictKey("gate") and leaf.ndim == 3:
            assert leaf.addressable_shards[0].data.size * 4 == leaf.size, path
            split += 1
    assert split == 4  # the weight, its average, Adam's two moments


def test_fine_tuning_a_hub_folder_on_a_mesh_starts_with_its_weights(tmp_path):
    hub = ROOT / "tests" / "golden" / "llada-b-gqa-bias-bf16"
    config = training_config.make(
        {"init_from": str(hub), "output": str(tmp_path / "out"), "data": "none.jsonl", "steps": 1},
        "a run",
    )
    start = setup.prepare(config)
    shapes = jax.eval_shape(lambda: start.params(0))
    placement = TrainingPlacement(parse("fsdp=2,tensor=2"), start.model)
    spread = start.params(0, placement.state(shapes))
    gate = spread["layers"]["gate"]
    assert gate.addressable_shards[0].data.size * 4 == gate.size
    plain = start.params(0)
    assert jax.tree.structure(spread) == jax.tree.structure(plain)
    for got, want in zip(jax.tree.leaves(spread), jax.tree.leaves(plain), strict=True):
        assert got.dtype == np.float32 and np.array_equal(got, want)


def test_rows_that_a_mesh_does_not_divide_are_shared_by_part_of_it():
    placement = TrainingPlacement(parse("data=2,fsdp=3"), tiny_config())
    shards = [len({str(i) for i in indices(placement.batch(n), n)}) for n in (12, 4, 9, 5)]
    assert shards == [6, 2, 3, 1]


def indices(sharding, rows):
    return sharding.devices_indices_map((rows, 7)).values()


def test_a_mesh_larger_than_the_machine(tmp_path):
    with pytest.raises(UserError, match="needs 64 devices, here are 8"):
        run(tmp_path / "run", "data=64")
