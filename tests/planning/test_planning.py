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
from leapjax.models.quantize import quantize
from leapjax.planning import (
    candidates,
    chips,
    collectives,
    compiled,
    hlo,
    models,
    need,
    roofline,
    search,
    speed,
)
from leapjax.serve.lane import compile_run
from leapjax.serve.sizes import default_refresh_group
from leapjax.sharding import MeshShape, placements
from leapjax.testing import tiny_config, tiny_params


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
        return need.held(MeshShape(), made, 1).total / 2 - cached(model)

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
    made = dataclasses.replace(made, refresh_group=rows)
    parts = roofline.parts(chips.parse("v5e:1x1"), MeshShape(), made, rows)
    for name, traced in (
        ("refresh pass", jax.make_jaxpr(full)(params, ids(t), ids(w), stored)),
        ("window pass", jax.make_jaxpr(window)(params, ids(w), start, stored)),
    ):
        flops = (parts[name].compute + parts["besides"].compute) * 197e12
        assert flops == pytest.approx(dots(traced.jaxpr))


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
    assert t.seconds == max(t.compute, t.memory) + t.exchange
    assert besides.compute == pytest.approx(2 * 64 * 32 * d * v / 8 / 197e12)
    assert besides.memory == pytest.approx(d * v * 2 / 8 / 819e9) and besides.exchange == 0
    alone = roofline.parts(where, MeshShape(), made, 1)["window pass"]
    assert alone.exchange == 0 and alone.bound == "memory"
    # int8 matrices are half of it, with a float32 scale an output; norms stay.
    whole = roofline.parts(where, MeshShape(), made, 1, "int8")["window pass"]
    scales = layers * (5 * d + 2 * mlp) * 4
    read = weights + scales + norms + 2 * layers * d * 2 * 768 + (2 * layers + 1) * 32 * d * 2
    assert whole.memory == pytest.approx(read / 819e9) and whole.compute == alone.compute


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
    said = speed.estimate(where, mesh, made, 8, tokens_per_step=4, moved=moved, cycles=cycles)
    runs, parts = said["schedule"], said["parts"]
    assert runs["tokens"] == 512 * 256
    assert runs["tokens"] / runs["passes"] / 8 == pytest.approx(4, rel=0.02)
    window, refresh = parts["window pass"], parts["refresh pass"]
    assert said["seconds"]["bytes"]["window pass"] == pytest.approx(
        20e9 / 1638e9 + window["exchange"]
    )
    # What is hardly moved takes as long as it is computed.
    assert said["seconds"]["bytes"]["refresh pass"] == refresh["compute"] + refresh["exchange"]
    assert said["seconds"]["cycles"]["window pass"] == pytest.approx(
        7e6 / 1.75e9 + window["exchange"]
    )
    for kind, seconds in said["seconds"].items():
        whole = sum(runs[part] * s for part, s in seconds.items())
        assert said["tokens_per_s_chip"][kind] == pytest.approx(runs["tokens"] * 2 / 8 / whole)
        assert said["step_s"][kind] == pytest.approx(whole / runs["passes"])
    plain = speed.estimate(where, mesh, program(cache="none"), 8, tokens_per_step=4)
    assert set(plain["seconds"]["bound"]) == {"full pass", "besides"}
    assert plain["tokens_per_s_chip"]["bound"] < said["tokens_per_s_chip"]["bound"]


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


def work(**changes):
    config = DecodeConfig(gen_length=256, cache="dual")
    made = candidates.Workload(models.find("llada-8b"), config, 512, "bfloat16")
    return dataclasses.replace(made, **changes)


def found(work, where):
    where = chips.parse(where)
    meshes = candidates.meshes(work, where)
    return [c for mesh in meshes for c in candidates.candidates(work, where, mesh)]


def test_rows_and_forms_are_searched():
    both = work(quantize=(None, "int8"), refresh_group=1)
    [one] = found(both, "v5e:1x1")  # 16 GB of weights or 8, and 0.4 GB a row
    assert one.quantize == "int8" and one.rows[0] <= 16 and one.rows[-1] == 1
    assert set(one.rows) <= {1, 2, 3, 4, 6, 8, 12, 16} and list(one.rows) == sorted(one.rows)[::-1]
    tried = candidates.best(found(both, "v5e:2x4"), 2)
    assert [c.bound for c in tried] == sorted((c.bound for c in tried), reverse=True)
    forms = [c.quantize for c in tried]
    assert forms.count(None) == forms.count("int8") == 2
    bounds = {}
    for rows in one.rows:
        alone = dataclasses.replace(both, batch=rows)
        [given] = found(alone, "v5e:1x1")
        assert given.rows == (rows,)
        bounds[rows] = given.bound
    # More rows would hardly be faster, and fewer are slower.
    assert bounds[one.rows[0]] > 0.97 * max(bounds.values()) > bounds[1]


def test_a_given_batch_leaves_no_device_without_a_row():
    tried = {c.mesh: c.rows for c in found(work(batch=4), "v6e:2x4")}
    assert MeshShape(data=8) not in tried and tried[MeshShape(data=4, tensor=2)] == (1,)


def test_a_sweep_has_a_row_a_mesh():
    """A replica's mesh comes once, on the smallest slice that one can rent."""
    made = candidates.replicas(work(), "v5p", 16)
    assert {(str(where), mesh) for where, mesh in made if mesh.fsdp == 1} == {
        ("v5p:2x2x1", MeshShape(data=4)),
        ("v5p:2x2x1", MeshShape(data=2, tensor=2)),
        ("v5p:2x2x1", MeshShape(tensor=4)),
        ("v5p:2x2x2", MeshShape(tensor=8)),
        ("v5p:2x2x4", MeshShape(tensor=16)),
    }


def test_refresh_group_is_the_engines_on_a_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for slots in (1, 8, 64, 100):
        assert work().program(slots).refresh_group == default_refresh_group(slots)


def planned(where, chips, cycles, bytes, fits=True):
    each = {"cycles": cycles, "bytes": bytes, "bound": 2000.0}
    return {
        "topology": where,
        "chips": chips,
        "fits": fits,
        "estimated": {"tokens_per_s_chip": each},
    }


def test_recommendation_is_the_cheapest_that_fits():
    """By the slower of two estimates."""
    plans = [
        planned("v5e:2x4", 8, 100.0, 400.0),
        planned("v6e:2x2", 4, 350.0, 300.0),
        planned("v6e:1x1", 1, 900.0, 900.0, fits=False),
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
        ["--topology", "v5e:2x4", "--quantize", "int4"],
        ["--sweep", "v5e", "--mesh", "tensor=8"],
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


def test_a_plan_takes_fewer_rows_until_it_fits(monkeypatch):
    def made(total):
        parts = dict.fromkeys(("window pass", "refresh pass", "besides", "outside"), 10**9)
        return {
            "counted": {"total": total, "moved": parts},
            "estimated": {"cycles": parts},
            "measured": {},
        }

    where, mesh = chips.parse("v5e:2x4"), MeshShape(data=4, tensor=2)
    one = candidates.Candidate(where, mesh, None, (16, 12, 8, 6, 4), 300.0)
    for answers, rows, error in (
        ([made(15 * 10**9)], 16, None),
        ([{"error": "no room"}, made(17_015_768_576), made(15 * 10**9)], 8, None),
        ([{"error": "no room"}] * 3 + [made(17_015_768_576)], None, "needs 17.0 GB a device of 16"),
        ([{"error": "took long", "ended": "timed out"}], None, "took long"),
        ([{"error": "aborted", "ended": "aborted"}, made(15 * 10**9)], 12, None),
    ):
        left = iter(answers)
        monkeypatch.setattr(search, "_compile", lambda *how, left=left: next(left))
        got = search.plan(work(), one, search.Store(None), 60.0)
        assert next(left, None) is None  # no more were made
        assert (got["fits"], got.get("rows_a_replica")) == (rows is not None, rows)
        assert error is None or error in got["error"]
        assert ("error" in got) is not got["fits"]
        assert len(got["failed"]) == len(answers) - got["fits"]
        if rows:
            assert 0 < search.tokens_per_s(got) < 300
