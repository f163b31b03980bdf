"""Models spread over 8 virtual devices decode what one device decodes."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig, Request
from leapjax.errors import UserError
from leapjax.ops.mesh import add_to_residual, gather, split_residual
from leapjax.serve import engine, lowering
from leapjax.serve.lane import Replica
from leapjax.serve.lowering import compile_run
from leapjax.serve.memory import needed_bytes
from leapjax.sharding import MeshShape, parse, placements
from leapjax.testing import tiny_config, tiny_params
from tests.decoding.test_golden import GOLDEN, GROUPS, QUICK, features

MESHES = ("tensor=2", "tensor=4", "fsdp=2,tensor=2", "data=8", "data=2,tensor=4")


def few(count):
    """Groups that together exercise the most, so that each mesh meets every feature in time."""
    seen, chosen = set(), []
    for group in sorted(QUICK, key=lambda g: (-len(features(GROUPS[g])), g)):
        if features(GROUPS[group]) - seen:
            chosen.append(group)
            seen |= features(GROUPS[group])
    return chosen[:count]


def _mark(group):
    return pytest.mark.slow if group in few(15) else pytest.mark.exhaustive


# Each quick mesh takes its share of the covering groups; the rest is every pair.
COVERED = {(m, g) for i, g in enumerate(few(15)) for m in [MESHES[i % len(MESHES)]]}


@pytest.mark.parametrize(
    ("mesh", "group"),
    [
        pytest.param(m, g, marks=() if (m, g) in COVERED else _mark(g))
        for g in GROUPS  # first, so that its meshes share what is traced
        for m in MESHES
    ],
)
def test_goldens(mesh, group):
    cases = GROUPS[group]
    lm = leapjax.load(GOLDEN / cases[0]["model"], mesh=mesh)
    requests = [
        Request(case["id"], tuple(case["prompt_ids"]), DecodeConfig(**case["options"]))
        for case in cases
    ]
    answers = lm.stream(requests, batch_size=4 * parse(mesh).data)
    for case, got in zip(cases, answers, strict=True):
        assert got.output_ids == case["output_ids"], case["id"]
        assert got.steps == case["steps"] and got.commit_step == case["commit_step"], case["id"]


@pytest.mark.parametrize("mesh", ["tensor=2", "fsdp=4,tensor=2"])
def test_logits(mesh):
    ids = np.arange(12).reshape(2, 6)
    whole = leapjax.load(GOLDEN / "llada-a").logits(ids)
    spread = leapjax.load(GOLDEN / "llada-a", mesh=mesh).logits(ids)
    np.testing.assert_allclose(spread, whole, atol=2e-5 * np.abs(whole).max())


def test_weights_are_split_as_the_table_says():
    lm = leapjax.load(GOLDEN / "llada-a", mesh="fsdp=2,tensor=2")
    layers = lm.params["layers"]
    for name in ("q", "gate", "o", "down"):
        part = layers[name].addressable_shards[0].data
        assert part.size * 4 == layers[name].size
    assert layers["attn_norm"].sharding.is_fully_replicated
    odd = leapjax.load(GOLDEN / "llada-c-tied", mesh="tensor=2")
    assert odd.params["layers"]["q"].sharding.is_fully_replicated  # 3 heads are not cut in two


@pytest.mark.parametrize(
    ("tensor", "width", "part"), [(None, 8, 8), (1, 8, 8), (4, 8, 2), (4, 6, 6)]
)
def test_the_residual_is_split_where_tensor_divides_it(tensor, width, part):
    x = jnp.ones((2, 3, width))
    if tensor is None:
        assert split_residual(x) is x and gather(x) is x and add_to_residual(x, x).shape == x.shape
        return
    place = placements(MeshShape(tensor=tensor))[0]
    x = jax.device_put(x, place.everywhere())
    with jax.set_mesh(place.mesh):
        split = jax.jit(split_residual)(x)
        total, whole = jax.jit(add_to_residual)(split, x), jax.jit(gather)(split)
    shapes = [y.sharding.shard_shape(y.shape)[-1] for y in (split, total, whole)]
    assert shapes == [part, part, width]
    np.testing.assert_array_equal(total, 2 * x)


def test_replicas_share_a_job_of_uneven_rows():
    config = tiny_config()
    params = tiny_params(config)
    job = DecodeConfig(policy="low_confidence", gen_length=64, block_length=8, early_stop=False)
    rng = np.random.default_rng(0)
    # 8x spread: rows of 8 to 64 passes.
    requests = [
        Request(str(i), (1, 2, 3), job.replace(steps=8 * int(n)))
        for i, n in enumerate(rng.integers(1, 9, 64))
    ]
    places = placements(MeshShape(data=4))
    replicas = [Replica(jax.device_put(params, p.everywhere()), p) for p in places]
    lm = leapjax.LM(replicas[0].params, config, None, replicas=replicas)
    engine, found = lm.engine(4), {}
    tickets = [engine.submit(request) for request in requests]
    while engine.unfinished:
        engine.begin()
        # No replica stands still, and no slot is free, while others work and rows wait.
        if engine.unfinished > len(engine.seated):
            assert engine.progress.running == engine.progress.slots == 16
        found |= dict(engine.collect())
    answers = [found[ticket] for ticket in tickets]
    alone = leapjax.LM(params, config, None).engine(4)
    for one, other in zip(alone.stream(requests), answers, strict=True):
        assert one.output_ids == other.output_ids and one.steps == other.steps
    passes = engine.progress.lane_passes
    assert len(passes) == 4 and min(passes) > 0


class Meeting:
    """A lowered program that is not compiled until another one is about to be."""

    def __init__(self, lowered, barrier):
        self.lowered, self.barrier = lowered, barrier

    def compile(self):
        self.barrier.wait()
        return self.lowered.compile()


def test_replicas_with_rows_compile_beside_each_other(monkeypatch, compilations):
    config = tiny_config()
    params = tiny_params(config)
    job = DecodeConfig(gen_length=24, block_length=8)
    requests = [Request(str(i), (1, 2, 3 + i), job) for i in range(2)]
    want = list(leapjax.LM(params, config, None).engine(1).stream(requests))
    places = placements(MeshShape(data=3))
    replicas = [Replica(jax.device_put(params, p.everywhere()), p) for p in places]
    lm = leapjax.LM(replicas[0].params, config, None, replicas=replicas)
    # Two at a time, or the barrier breaks: one after the other would wait forever.
    pair = threading.Barrier(2, timeout=120)
    lower = lowering.lower_run
    monkeypatch.setattr(lowering, "lower_run", lambda *how: Meeting(lower(*how), pair))
    with compilations.seen() as names:
        assert list(lm.engine(1).stream(requests)) == want
    assert names.count("run") == 2  # the third has no rows
    with compilations.none():
        assert list(lm.engine(1).stream(requests)) == want


@pytest.mark.slow
def test_replicas_find_the_slots_that_fit_together(monkeypatch):
    config = tiny_config()
    params = tiny_params(config)
    requests = [Request(str(i), (1, 2, 3 + i), DecodeConfig(gen_length=32)) for i in range(16)]
    want = list(leapjax.LM(params, config, None).engine(4).stream(requests))
    places = placements(MeshShape(data=2))
    replicas = [Replica(jax.device_put(params, p.everywhere()), p) for p in places]
    lm = leapjax.LM(replicas[0].params, config, None, replicas=replicas)
    program = lm.engine(8).program(requests[0])
    params = lm.engine(8).replicas[0].params
    few, many = (needed_bytes([compile_run(params, program, n, places[0])]) for n in (4, 8))
    assert few < many
    monkeypatch.setattr(engine, "memory_limit", lambda: many - 1)
    seen = []
    answers = lm.engine(8, fixed=False).stream(requests, lambda p: seen.append(p.slots))
    for one, other in zip(want, answers, strict=True):
        assert one.output_ids == other.output_ids and one.commit_step == other.commit_step
    assert max(seen) == 2 * 4


def test_a_row_is_the_same_in_any_replica():
    lm = leapjax.load(GOLDEN / "llada-a", mesh="data=3")
    job = DecodeConfig(gen_length=16, block_length=8)
    answers = lm.generate([[1, 2, 3]] * 12, job, batch_size=6)
    assert len({tuple(a.output_ids) for a in answers}) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tensor=0", "each axis once"),
        ("data=2,data=2", "each axis once"),
        ("model=2", "--mesh"),
        ("tensor", "each axis once"),
        ("tensor=64", "64 devices, here are 8"),
    ],
)
def test_bad_meshes(text, words):
    with pytest.raises(UserError, match=words):
        placements(parse(text))


def test_mesh_reads_and_prints():
    assert parse("tensor=4, data=2") == MeshShape(data=2, tensor=4)
    assert parse(str(MeshShape(2, 1, 4))) == MeshShape(2, 1, 4)
