"""Slices, the roofline by hand, and what is read from a compiled program."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from leapjax.cli import plan as command
from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.errors import UserError
from leapjax.models import param_shapes, transformer
from leapjax.planning import chips, collectives, compiled, hlo, models, roofline, search
from leapjax.serve.lane import compile_run
from leapjax.serve.sizes import default_refresh_group
from leapjax.sharding import MeshShape, placements
from leapjax.testing import tiny_config


def program(name="llada-8b", cache="dual", length=768):
    return program_for(
        DecodeConfig(gen_length=256, cache=cache),
        models.find(name),
        length=length,
        dtype="bfloat16",
        eot_token_id=None,
        refresh_group=4,
    )


def test_slices():
    where = chips.parse("v5e:2x4")
    assert (where.chips, where.devices, str(where)) == (8, 8, "v5e:2x4")
    assert chips.parse("7x:2x2x1").devices == 8  # four chips of two devices
    assert chips.parse("ironwood:2x2x1") == chips.parse("7x:2x2x1")
    assert [s.chips for s in chips.slices("v6e", 16)] == [1, 4, 8, 16]
    for kind in chips.CHIPS:
        assert max(s.chips for s in chips.slices(kind)) == 256
    assert str(chips.home(chips.CHIPS["v5e"], 2)) == "v5e:2x2"
    assert str(chips.home(chips.CHIPS["7x"], 2)) == "7x:1x1x1"


def test_dimensions_of_consecutive_devices():
    where = chips.parse("v5e:4x4")
    assert [where.spanned(n) for n in (1, 2, 4, 8, 16)] == [0, 1, 1, 2, 2]
    where = chips.parse("7x:2x2x2")
    assert [where.spanned(n) for n in (1, 2, 4, 8, 16)] == [0, 0, 1, 2, 3]


def test_a_wrong_slice_meets_its_neighbour():
    with pytest.raises(UserError, match="did you mean v5e:4x4"):
        chips.parse("v5e:3x5")
    with pytest.raises(UserError, match="did you mean 'v6e'"):
        chips.parse("v6p:2x4")


@pytest.mark.parametrize("text", ["v4:2x2", "v5e", "v5e:2x2x2", "v5p:2x2", "v5e:0x4", "v5e:axb"])
def test_bad_slices(text):
    with pytest.raises(UserError, match="--topology"):
        chips.parse(text)


def test_presets_have_the_released_sizes():
    def count(name):
        model = models.find(name)
        made = program(name)
        return roofline.held(MeshShape(), made, 1).total / 2 - cached(model)

    def cached(model):
        return 2 * model.n_layers * 768 * model.n_kv_heads * model.head_dim

    assert round(count("llada-8b") / 1e9, 2) == 8.02
    assert round(count("dream-7b") / 1e9, 2) == 7.62
    assert 95 < count("100b") / 1e9 < 120
    with pytest.raises(UserError, match="llada-8b"):
        models.find("nobody/knows")


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
        hidden, _ = transformer.window_states(params, model, ids, ids, valid, cache, start, None)
        return transformer.head(params, model, hidden)

    def ids(n):
        return jax.ShapeDtypeStruct((rows, n), jnp.int32)

    stored = made.kv_cache.shapes(made, rows)
    start = jax.ShapeDtypeStruct((rows,), jnp.int32)
    where, alone = chips.parse("v5e:1x1"), MeshShape()
    for positions, traced in (
        (t, jax.make_jaxpr(full)(params, ids(t), ids(w), stored)),
        (w, jax.make_jaxpr(window)(params, ids(w), start, stored)),
    ):
        time = roofline.pass_time(where, alone, made, rows, rows, positions)
        assert time.compute * 197e12 == pytest.approx(dots(traced.jaxpr))


def test_roofline_by_hand():
    where, mesh, made = chips.parse("v5e:2x4"), MeshShape(tensor=8), program()
    t = roofline.pass_time(where, mesh, made, 64, rows=64, positions=32)
    d, layers, mlp, v = 4096, 32, 12_288, 126_464
    weights = layers * (4 * d * d + 3 * d * mlp)
    flops = 2 * 64 * 32 * weights + layers * 4 * 64 * 32 * 768 * d + 2 * 64 * 32 * d * v
    assert t.compute == pytest.approx(flops / 8 / 197e12)
    cache = 2 * layers * d * 2 * 64 * 768 / 8
    norms = layers * 2 * d * 2  # on every device
    assert t.memory == pytest.approx(((weights + d * v) * 2 / 8 + norms + cache) / 819e9)
    exchanged = (2 * layers + 1) * 64 * 32 * d * 2
    two_links = 2 * 50e9
    hops = (2 * layers + 1) * 8e-6
    assert t.exchange == pytest.approx(exchanged * 2 * 7 / 8 / two_links + hops)
    assert t.seconds == max(t.compute, t.memory) + t.exchange
    alone = roofline.pass_time(where, MeshShape(), made, 1, rows=1, positions=32)
    assert alone.exchange == 0 and alone.bound == "memory"


def test_prediction_counts_refreshes():
    where, mesh, made = chips.parse("v6e:2x4"), MeshShape(data=2, tensor=4), program()
    guess = roofline.predict(where, mesh, made, slots=8, tokens_per_step=4)
    # A block of 32 is 8 steps, in which 8 rows refresh in groups of 4.
    block = 8 * guess.window.seconds + 2 * guess.full.seconds
    assert guess.step == pytest.approx(block / 8)
    assert guess.tokens_per_s_chip == pytest.approx(8 * 32 * 2 / block / 8)
    # 64 rows in groups of 4 take 16 iterations, however few steps a block has.
    many = roofline.predict(where, mesh, made, slots=64, tokens_per_step=4)
    block = 16 * (many.window.seconds + many.full.seconds)
    assert many.tokens_per_s_chip == pytest.approx(64 * 32 * 2 / block / 8)
    plain = roofline.predict(where, mesh, program(cache="none"), slots=8, tokens_per_step=4)
    assert plain.step == plain.full.seconds > guess.step


TEXT = """\
HloModule jit_run, input_output_alias={ {0}: (1, {}, may-alias) }, \
entry_computation_layout={(f32[4]{0}, s32[2,3]{1,0})->(s32[2,3]{1,0})}, num_partitions=8
%inner (p: f32[2]) -> f32[2] {
  %a = bf16[4,768,4096]{2,1,0} all-reduce(%x), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0)
}
%body (p: f32[2]) -> f32[2] {
  %c = f32[2]{0} fusion(%z), kind=kLoop, calls=%inner
  %d = f32[2]{0} add(%all-reduce.1, %z), metadata={op_name="jit(run)/while/body/add"}
}
ENTRY %main (p: f32[2]) -> f32[2] {
  %b = (f32[8,32], f32[64,32]) all-gather-start(%y), channel_id=2, replica_groups=[2,4]<=[8]
  %e = f32[64,32]{1,0} all-gather(%y), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}
  %f = f32[2]{0} all-to-all(%y), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'a'}
  %w = f32[2]{0} while(%t), condition=%cond, body=%body
}
"""


def test_collectives_are_read():
    module = hlo.parse(TEXT)
    one, two, three = collectives.read(module)
    sizes = {"fsdp": 2, "tensor": 4}
    assert (one.kind, one.bytes, one.in_loop) == ("all-reduce", 4 * 768 * 4096 * 2, True)
    assert one.axes(sizes) == ("fsdp",) == three.axes(sizes)
    assert (two.kind, two.bytes, two.in_loop) == ("all-gather", 64 * 32 * 4, False)
    assert two.axes(sizes) == ("tensor",)
    assert module.partitions == 8
    assert module.donated == [("s32", (2, 3))]


@pytest.mark.parametrize("mesh", [MeshShape(data=2, tensor=4), MeshShape(fsdp=2, tensor=2)])
def test_a_compiled_decode_on_cpu_devices(mesh):
    """The same facts as for a TPU, of a tiny model that keeps its vocabulary split."""
    model = tiny_config()
    made = dataclasses.replace(program(), model=model, length=96, dtype="float32")
    place = placements(mesh)[0]
    params = compiled.abstract_params(made, place)
    module = hlo.parse(compile_run(params, made, 4, place).as_text())
    assert module.partitions == mesh.replica
    found = collectives.read(module)
    crossed = {c.axes({"fsdp": mesh.fsdp, "tensor": mesh.tensor}) for c in found if c.in_loop}
    assert crossed and None not in crossed
    assert {a for axes in crossed for a in axes} == {
        a for a in ("fsdp", "tensor") if getattr(mesh, a) > 1
    }
    assert ("s32", (4 // mesh.fsdp, 96)) in module.donated


def test_stored_results_are_not_made_again(tmp_path):
    store = search.Store(tmp_path / "plans.jsonl")
    assert store.get("a", lambda: {"total": 1}) == {"total": 1}
    again = search.Store(tmp_path / "plans.jsonl")
    assert again.get("a", lambda: pytest.fail("compiled again")) == {"total": 1}
    (tmp_path / "plans.jsonl").write_text("nonsense")
    with pytest.raises(UserError, match="remove it"):
        search.Store(tmp_path / "plans.jsonl")


def test_meshes_are_tried_fastest_first_and_hold_the_weights():
    work = search.Workload(
        models.find("llada-8b"),
        DecodeConfig(gen_length=256, cache="dual"),
        512,
        "bfloat16",
        None,
        None,
        4.0,
    )
    assert search.meshes(work, chips.parse("v5e:1x1")) == []  # 16 GB of weights
    where = chips.parse("v5e:2x4")
    tried = search.meshes(work, where)
    assert MeshShape(data=8) not in tried and MeshShape(tensor=8) in tried
    speeds = [
        roofline.predict(where, m, work.program(s), s, 4.0).tokens_per_s_chip
        for m in tried
        for s in [work.slots(where, m)]
    ]
    assert speeds == sorted(speeds, reverse=True)


def test_refresh_group_is_the_engines_on_a_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    work = search.Workload(
        models.find("llada-8b"), DecodeConfig(cache="dual"), 512, "bfloat16", None, None, 4.0
    )
    for slots in (1, 8, 64, 100):
        assert work.program(slots).refresh_group == default_refresh_group(slots)


def test_recommendation_is_the_cheapest_that_fits():
    plans = [
        {"topology": "v5e:2x4", "chips": 8, "fits": True, "tokens_per_s_chip": 100.0},
        {"topology": "v6e:2x2", "chips": 4, "fits": True, "tokens_per_s_chip": 300.0},
        {"topology": "v6e:1x1", "chips": 1, "fits": False, "tokens_per_s_chip": 900.0},
    ]
    assert search.recommend(plans, {})["topology"] == "v6e:2x2"
    assert search.recommend(plans, {"v5e": 1.0, "v6e": 4.0})["topology"] == "v5e:2x4"
    assert search.recommend(plans[2:], {}) is None


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--topology", "v5e:2x4", "--sweep"],
        ["--topology", "v9:1x1"],
        ["--sweep", "v9"],
        ["--topology", "v5e:2x4", "--tokens-per-step", "0"],
        ["--topology", "v5e:2x4", "--model", "nothing/here"],
        ["--topology", "v5e:2x4", "--price", "v5e"],
    ],
)
def test_bad_input_is_one_line(argv, capsys):
    assert command.main(argv) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_why_a_program_does_not_compile_is_short():
    large = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "{0}. Used 67.50M of 64.00M {0}. Exceeded {0} capacity by 3.50M.\n\nProgram {0} …"
    )
    for space in ("hbm", "vmem"):
        text = compiled.brief(large.format(space))
        assert text == f"too little memory (Used 67.50M of 64.00M {space})"
    assert compiled.brief("INTERNAL: no\n  such thing") == "INTERNAL: no such thing"


def test_a_plan_tells_of_one_mesh_only(monkeypatch):
    """What was said of a mesh before is not mixed with the one that comes last."""
    numbers = {"weights": 1, "cache": 1, "state": 1, "temporaries": 1, "donated": 1}
    answers = [
        {"error": "no room"},
        {"total": 17_015_768_576, **numbers},
        {"error": "still no room"},
        {"total": 15_000_000_000, **numbers},
    ]
    work = search.Workload(
        model=models.find("100b"),
        config=DecodeConfig(gen_length=256, cache="dual"),
        prompt_length=512,
        dtype="bfloat16",
        batch=None,
        refresh_group=None,
        tokens_per_step=4.0,
    )
    meshes = [MeshShape(1, f, t) for f, t in ((4, 4), (2, 8), (8, 2), (1, 16))]
    for count, fits, total, error in (
        (1, False, None, "no room"),
        (2, False, 17_015_768_576, "v5e:4x4, data=1,fsdp=2,tensor=8: needs 17.0 GB a device of 16"),
        (3, False, None, "still no room"),
        (4, True, 15_000_000_000, None),
    ):
        made = iter(answers)
        monkeypatch.setattr(search, "_compile", lambda *how, made=made: next(made))
        store = search.Store(None)
        got = search.plan(work, chips.parse("v5e:4x4"), meshes[:count], store, 60.0)
        assert (got["fits"], got.get("total")) == (fits, total)
        assert got["mesh"] == str(meshes[count - 1])
        assert (got.get("error") or "").startswith(error or "")
        assert ("error" in got) is not fits
        assert len(got["failed"]) == min(count, 3)
