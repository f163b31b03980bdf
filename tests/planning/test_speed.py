"""The roofline by hand, exchange, and tokens/s from the parts of a program."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from leapjax.models import param_shapes, transformer
from leapjax.models.quantize import quantize
from leapjax.planning import (
    audit,
    chips,
    compiled,
    exchange,
    need,
    roofline,
    speed,
)
from leapjax.sharding import MeshShape, placements
from leapjax.testing import tiny_config, tiny_params
from tests.planning import stored
from tests.planning.shapes import program


def dots(jaxpr):
    """FLOPs of all products of a program, loops with a known count multiplied out."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (inner, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[i] for i in inner)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for sub in jaxprs_in_params(eqn.params):
            total += times * dots(sub)
    return total


def test_flops_are_those_of_the_traced_model():
    model = dataclasses.replace(tiny_config(), n_layers=3)
    made = dataclasses.replace(program(), model=model, length=96, dtype="float32")
    rows, w, t = 5, made.block_length, made.length
    params = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        param_shapes(model),
        is_leaf=lambda x: isinstance(x, tuple),
    )

    def full(params, ids, outputs, cache):
        valid = jnp.ones(ids.shape, bool)
        everybody = jnp.arange(rows, dtype=jnp.int32)
        hidden, _ = transformer.refresh_states(
            params, model, ids, ids, valid, cache, everybody, outputs=outputs
        )
        return transformer.head(params, model, hidden)

    def window(params, ids, start, cache):
        valid = jnp.ones((rows, t), bool)
        fresh = start, start + w
        hidden = transformer.window_states(params, model, ids, ids, valid, cache, start, fresh)
        return transformer.head(params, model, hidden)

    def ids(n):
        return jax.ShapeDtypeStruct((rows, n), jnp.int32)

    stored = made.kv_cache.shapes(made, rows)
    start = jax.ShapeDtypeStruct((rows,), jnp.int32)
    made = dataclasses.replace(made, refresh_group=rows)
    parts = roofline.parts(chips.parse("v5e:1x1"), MeshShape(), made, rows)
    # Scores of the window's own cached columns are computed, and masked.
    masked = model.n_layers * rows * w * 4 * w * model.n_heads * model.head_dim
    for name, traced, more in (
        ("refresh pass", jax.make_jaxpr(full)(params, ids(t), ids(w), stored), 0),
        ("window pass", jax.make_jaxpr(window)(params, ids(w), start, stored), masked),
    ):
        flops = (parts[name].compute + parts["besides"].compute) * 197e12
        assert flops + more == pytest.approx(dots(traced.jaxpr))


def test_roofline_by_hand():
    where, mesh, made = chips.parse("v5e:2x4"), MeshShape(tensor=8), program()
    parts = roofline.parts(where, mesh, made, 64)
    t, besides = parts["window pass"], parts["besides"]
    d, layers, mlp, v = 4096, 32, 12_288, 126_464
    weights = layers * (4 * d * d + 3 * d * mlp)
    flops = 2 * 64 * 32 * weights + layers * 4 * 64 * 32 * 768 * d
    assert t.compute == pytest.approx(flops / 8 / 197e12)
    cache = 2 * layers * d * 2 * 64 * 768 / 8
    norms = layers * 2 * d * 2  # on every device
    stream = 64 * 32 * d * 2  # from the embedding; each layer writes and reads it
    moved = (weights * 2 + (2 * layers + 1) * stream) / 8 + norms + cache
    assert t.memory == pytest.approx(moved / 819e9)
    exchanged = (2 * layers + 1) * 64 * 32 * d * 2
    two_links = 2 * 50e9
    hops = (2 * layers + 1) * 8e-6
    assert t.exchange == pytest.approx(exchanged * 2 * 7 / 8 / two_links + hops)
    assert t.seconds == max(t.compute, t.memory, t.exchange)
    assert besides.compute == pytest.approx(2 * 64 * 32 * d * v / 8 / 197e12)
    assert besides.memory == pytest.approx(d * v * 2 / 8 / 819e9) and besides.exchange == 0
    alone = roofline.parts(where, MeshShape(), made, 1)["window pass"]
    assert alone.exchange == 0 and alone.bound == "memory"
    # int8 matrices are half of it, with a float32 scale an output; norms stay.
    whole = roofline.parts(where, MeshShape(), made, 1, "int8")["window pass"]
    scales = layers * (5 * d + 2 * mlp) * 4
    read = weights + scales + norms + 2 * layers * d * 2 * 768 + (2 * layers + 1) * 32 * d * 2
    assert whole.memory == pytest.approx(read / 819e9) and whole.compute == alone.compute


def test_a_block_cache_by_hand():
    """SDAR-8B: 64 rows in turns of 30 on one v5e, 60 two blocks wide; nothing is refreshed."""
    made = program("sdar-8b", "block", refresh_group=30, block_length=4)
    d, layers, mlp, kv = 4096, 36, 12_288, 1024
    matrices = layers * (2 * d * d + 2 * d * kv + 3 * d * mlp)
    weights = 2 * (matrices + layers * (2 * d + 2 * 128))
    row = 2 * layers * kv * 768 * 2
    turns, wide = (need.passes(MeshShape(), made, rows) for rows in (64, 60))
    assert wide.passes.keys() == {need.WINDOW, need.PREFILL}
    assert turns.passes.keys() == {need.WINDOW, need.STORE, need.PREFILL}
    for found, name, rows, columns, cache in (
        (turns, need.WINDOW, 64, 4, 64 * row),
        (turns, need.STORE, 30, 8, 30 * row * 772 / 768),  # read, and a block of it written
        (turns, need.PREFILL, 1, 256, row / 3),  # written
        (wide, need.WINDOW, 60, 8, 60 * row),
    ):
        one = found.passes[name]
        assert (one.rows, one.columns, one.need.weights) == (rows, columns, weights)
        assert one.need.cache == pytest.approx(cache)
        assert one.need.residual == pytest.approx(2 * layers * rows * columns * d * 2)
    parts = roofline.parts(chips.parse("v5e:1x1"), MeshShape(), made, 64)
    store = 2 * 240 * matrices + layers * 4 * 240 * 768 * d
    assert parts[need.STORE].compute == pytest.approx(store / 197e12)
    piece = 2 * 256 * matrices + layers * 4 * 256 * 384 * d
    assert parts[need.PREFILL].compute == pytest.approx(piece / 197e12)
    # A turn's products take about as long as its weights.
    assert store / 197e12 == pytest.approx(weights / 819e9, rel=0.05)


def test_the_schedule_of_a_block_cache():
    """Prompts are prefilled once a row; Fast-dLLM v2 stores each block in a pass of its own."""
    v2 = program("fast-dllm-v2-7b", "block")
    counts = speed.schedule(v2, 8, 4.0)
    rows = 512
    assert counts.steps / (rows * 8) == pytest.approx(31 / 4, rel=0.01)  # passes that decide
    said = speed.estimate(chips.parse("v6e:1x1"), MeshShape(), v2, 8, tokens_per_step=4.0)
    runs = said["schedule"]
    assert runs["prefill"] == 2 * runs["around a prefill"] == 2 * rows  # 512 columns by 256
    assert runs["window pass"] == runs["passes"] == runs["besides"]
    assert runs["passes"] * 8 == pytest.approx(counts.steps + rows * 8, rel=0.02)
    wide, turns = (program("sdar-8b", "block", refresh_group=g, block_length=32) for g in (4, 3))
    once, more = (speed.schedule(made, 8, 4.0) for made in (wide, turns))
    assert once.passes == more.passes == once.window_passes and once.turns == 0
    # Every block but the last is stored; most turns store one row.
    assert more.waiting_rows == rows * 7 and more.waiting_rows / 3 < more.turns < more.passes


def test_int8_parameters_are_those_that_quantize_makes():
    """In shape, dtype and place: what `leapjax.load` makes is what is planned for."""
    model = tiny_config()
    made = dataclasses.replace(program(), model=model, dtype="bfloat16")
    place = placements(MeshShape(tensor=2))[0]
    planned = compiled.abstract_params(made, place, "int8")
    whole = quantize(tiny_params(model), model, "int8")
    assert jax.tree.structure(planned) == jax.tree.structure(whole)
    assert planned["layers"]["gate"].dtype == whole["layers"]["gate"].dtype == jnp.int8
    assert planned["layers"]["attn_norm"].dtype == jnp.bfloat16
    for one, other in zip(jax.tree.leaves(planned), jax.tree.leaves(whole), strict=True):
        assert one.shape == other.shape
    spread = place.parameters(model, whole)
    assert jax.tree.map(lambda x: x.sharding, planned) == spread


def test_a_speed_is_the_schedule_s_and_the_parts():
    where, mesh, made = chips.parse("v6e:2x4"), MeshShape(data=2, tensor=4), program()
    moved = {"window pass": 20e9, "refresh pass": 1.0, "besides": 0.0, "outside": 3e9}
    cycles = {"window pass": 7e6, "refresh pass": 0.0, "besides": 0.0, "outside": 0.0}
    one = {"kind": "all-reduce", "group": (0, 1, 2, 3), "bytes": 1e6, "times": 10}
    late = one | {"kind": "collective-permute", "group": (0, 1), "times": 1000}
    found = [
        one | {"part": "window pass", "asynchronous": False},
        late | {"part": "refresh pass", "asynchronous": True},
    ]
    counted = {"moved": moved, "collectives": found}
    said = speed.estimate(where, mesh, made, 8, tokens_per_step=4, counted=counted, cycles=cycles)
    runs, parts = said["schedule"], said["parts"]
    assert runs["tokens"] == 512 * 256
    assert runs["tokens"] / runs["passes"] / 8 == pytest.approx(4, rel=0.02)
    summed = 10 * (2 * 3 / 4 * 1e6 / 200e9 + 4e-6)  # two links of 100 GB/s, four hops
    moving, turning = (
        [said["seconds"][kind][part] for kind in ("bytes", "cycles", "bound")]
        for part in ("window pass", "refresh pass")
    )
    assert moving[:2] == pytest.approx([20e9 / 1638e9 + summed, 7e6 / 1.75e9 + summed])
    # What is hardly moved takes as long as it is computed, beside an exchange that is shorter.
    sent = 1000 * (1e6 / 100e9 + 1e-6)
    assert sent < parts["refresh pass"]["compute"] == turning[0]
    assert turning[1] == pytest.approx(sent)
    for kind, seconds in said["seconds"].items():
        whole = sum(runs[part] * s for part, s in seconds.items())
        assert said["tokens_per_s_chip"][kind] == pytest.approx(runs["tokens"] * 2 / 8 / whole)
        assert said["step_s"][kind] == pytest.approx(whole / runs["passes"])
    plain = speed.estimate(where, mesh, program(cache="none"), 8, tokens_per_step=4)
    assert set(plain["seconds"]["bound"]) == {"full pass", "besides"}
    assert plain["tokens_per_s_chip"]["bound"] < said["tokens_per_s_chip"]["bound"]


def test_what_a_chip_s_own_devices_exchange_is_free():
    where = chips.parse("7x:2x2x1")
    one = {"kind": "all-gather", "bytes": 8e6, "times": 1}
    assert exchange.seconds(where, one | {"group": (0, 1)}) == 0
    line = exchange.seconds(where, one | {"group": (0, 1, 2, 3)})
    assert line == pytest.approx(8e6 / 2 / 100e9 + 2e-6)
    apart = exchange.seconds(where, one | {"group": (0, 4)})
    assert apart == pytest.approx(8e6 / 2 / 100e9 + 2e-6)
    scattered = exchange.seconds(where, one | {"group": tuple(range(8)), "kind": "reduce-scatter"})
    assert scattered == pytest.approx(3 * 8e6 / 200e9 + 4e-6)


# ms of the parts of programs of commit 47f12aa, by the compiler's cycles, as they were found by
# another program, which counted the roofline's exchange: 6 and 32 of the last row's.
@pytest.mark.parametrize(
    ("name", "where", "mesh", "step", "refresh", "outside"),
    [
        ("v6e-data8-dual", "v6e:2x4", MeshShape(data=8), 39.7, 117, 18.5),
        ("v5e-tensor8-dual", "v5e:2x4", MeshShape(tensor=8), 157 + 20, 106 + 56, 52.8),
        ("v5e-data4-tensor2-dual", "v5e:2x4", MeshShape(data=4, tensor=2), 65 + 6, 183 + 32, 14.2),
    ],
)
def test_seconds_of_known_programs(name, where, mesh, step, refresh, outside):
    slots = 64 // mesh.data
    made, where = program(refresh_group=max(4, slots // 8)), chips.parse(where)
    account = audit.audit(stored.load(name), need.passes(mesh, made, slots))
    parts = [*account.passes.values(), account.outside]
    counted = {
        "moved": {p.name: p.moved for p in parts},
        "collectives": exchange.listed(parts, mesh),
    }
    cycles = {p.name: p.cycles for p in parts}
    said = speed.estimate(
        where, mesh, made, slots, tokens_per_step=4, counted=counted, cycles=cycles
    )
    seconds = {part: 1000 * s for part, s in said["seconds"]["cycles"].items()}
    assert seconds["window pass"] + seconds["besides"] == pytest.approx(step, rel=0.04)
    assert seconds["refresh pass"] == pytest.approx(refresh, rel=0.04)
    assert seconds["outside"] == pytest.approx(outside, rel=0.04)
