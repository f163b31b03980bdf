"""Slices, presets, and what is read from a compiled program."""

import dataclasses
import re

import pytest

from leapjax.errors import UserError
from leapjax.planning import (
    chips,
    collectives,
    compiled,
    hlo,
    models,
    need,
)
from leapjax.serve.lowering import compile_run
from leapjax.sharding import MeshShape, placements
from leapjax.testing import tiny_config
from tests.planning.shapes import program


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
%kept (p: bf16[4,64]) -> bf16[4,8] {
  %g = bf16[4,64]{1,0} all-reduce(%p), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %h = bf16[4,8]{1,0} dynamic-slice(%g, %i, %j), dynamic_slice_sizes={4,8}
}
ENTRY %main (p: f32[2]) -> f32[2] {
  %b = (f32[8,32], f32[64,32]) all-gather-start(%y), channel_id=2, replica_groups=[2,4]<=[8]
  %e = f32[64,32]{1,0} all-gather(%y), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}
  %f = f32[2]{0} all-to-all(%y), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'a'}
  %k = bf16[4,8]{1,0} fusion(%y), kind=kCustom, calls=%kept
  %w = f32[2]{0} while(%t), condition=%cond, body=%body
}
"""


def test_collectives_are_read():
    module = hlo.parse(TEXT)
    one, kept, two, three = collectives.read(module)
    sizes = {"fsdp": 2, "tensor": 4}
    assert (one.kind, one.bytes, one.in_loop) == ("all-reduce", 4 * 768 * 4096 * 2, True)
    assert one.axes(sizes) == ("fsdp",) == three.axes(sizes)
    assert (two.kind, two.bytes, two.in_loop) == ("all-gather", 64 * 32 * 4, False)
    assert two.axes(sizes) == ("tensor",)
    # Summed whole, but of the sum a slice is kept: how a TPU program scatters.
    assert (kept.kind, kept.bytes) == ("reduce-scatter", 4 * 8 * 2)
    assert module.partitions == 8
    assert module.donated == [("s32", (2, 3))]


@pytest.mark.parametrize("mesh", [MeshShape(data=2, tensor=4), MeshShape(fsdp=2, tensor=2)])
def test_a_compiled_decode_on_cpu_devices(mesh):
    """The same facts as for a TPU, of a tiny model that keeps its vocabulary split."""
    model = tiny_config()
    made = dataclasses.replace(program(), model=model, length=96, dtype="float32", refresh_group=1)
    place = placements(mesh)[0]
    params = compiled.abstract_params(made, place)
    text = compile_run(params, made, 4, place).as_text()
    # A refreshed row is written where its shard is: no collective carries cached keys or values.
    keys = rf"= \S*[\[,]96,{model.head_dim}\]\S* (all-gather|all-reduce|all-to-all|collective)"
    assert re.search(rf"[\[,]96,{model.head_dim}\]", text) and not re.search(keys, text)
    module = hlo.parse(text)
    assert module.partitions == mesh.replica
    found = collectives.read(module)
    crossed = {c.axes({"fsdp": mesh.fsdp, "tensor": mesh.tensor}) for c in found if c.in_loop}
    assert crossed and None not in crossed
    assert {a for axes in crossed for a in axes} == {
        a for a in ("fsdp", "tensor") if getattr(mesh, a) > 1
    }
    assert ("s32", (4 // mesh.fsdp, 96)) in module.donated
    # Each layer of a window: norms exchange sums of squares, products take all of a split residual.
    window, layers = (4 // mesh.fsdp, 32), "/window pass/while/body/"
    sums, whole = (("f32", window),), (("f32", (*window, model.d_model)),)
    sizes = {"fsdp": mesh.fsdp, "tensor": mesh.tensor}
    each = [c for c in found if layers in c.scope and c.axes(sizes) == ("tensor",)]
    assert sorted((c.kind, c.shapes) for c in each) == sorted(
        2 * [("all-gather", whole), ("all-reduce", sums), ("all-reduce", whole)]
    )
    assert f"f32[{4 // mesh.fsdp},32,{model.d_model // mesh.tensor}]" in text


def test_why_a_program_does_not_compile_is_short():
    large = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "{0}. Used 67.50M of 64.00M {0}. Exceeded {0} capacity by 3.50M.\n\nProgram {0} …"
    )
    for space in ("hbm", "vmem"):
        text = compiled.brief(large.format(space))
        assert text == f"too little memory (Used 67.50M of 64.00M {space})"
    assert compiled.brief("INTERNAL: no\n  such thing") == "INTERNAL: no such thing"


@pytest.mark.parametrize(("written", "cycles"), [(812, 812), (2**63 - 1, 0), (2**64 - 1, 0)])
def test_the_largest_integer_is_no_estimate(written, cycles):
    text = f"""HloModule one
ENTRY %main (x: f32[8]) -> f32[8] {{
  ROOT %x = f32[8]{{0}} parameter(0), backend_config={{"estimated_cycles":"{written}"}}
}}
"""
    assert [i.cycles for _, i in hlo.parse(text).everything()] == [cycles]
