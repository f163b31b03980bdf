"""What the real TPU compiler makes of the decode, for slices that are not attached."""

import importlib.util

import pytest

from leapjax.benchmarks import pass_timing, receipt_plans
from leapjax.benchmarks.models import TINY_8B
from leapjax.benchmarks.workload import Case
from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.ops import hardware
from leapjax.planning import audit, chips, compiled, hlo, models, need
from leapjax.progress import announced
from leapjax.serve.executables import Executables
from leapjax.serve.lane import Replica
from leapjax.serve.memory import together
from leapjax.sharding import MeshShape, placements
from tests.planning import shapes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]


@pytest.mark.parametrize("name", chips.CHIPS)
def test_devices_are_known_by_their_kind(name):
    chip = chips.CHIPS[name]
    (device, *_) = compiled.devices(chips.home(chip, 4))
    assert chips.of_device(device.device_kind) is chip


@pytest.mark.parametrize("cache", ["dual", "none"])
def test_the_programs_of_a_receipt_are_audited(cache):
    where, model = chips.parse("v6e:2x2"), TINY_8B
    mesh = MeshShape(tensor=2)
    place = placements(mesh, compiled.devices(where))[0]
    case = Case(cache, 4, 96, 64, 32)
    program = pass_timing.program_of(case, model, "bfloat16")
    params = compiled.abstract_params(program, place)
    made = pass_timing.Compiled(params, case, program, place)
    plan = receipt_plans.plan(made, where, mesh)
    assert plan.error is None and plan.moved.keys() == plan.seconds.keys()
    assert plan.seconds.keys() == {"full", *(["window"] if case.stores else [])}
    for moved, ratio in plan.moved.values():
        assert moved > 0 and ratio > 0
    assert all(each.keys() == {*receipt_plans.KINDS} for each in plan.seconds.values())


@pytest.mark.parametrize(
    ("where", "mesh", "rows"),
    [
        ("v5e:2x4", MeshShape(tensor=8), 64),
        ("v6e:2x4", MeshShape(data=2, tensor=4), 32),  # 64 rows on the slice
        ("v6e:16x16", MeshShape(data=32, tensor=8), 8),
    ],
)
def test_llada_8b(where, mesh, rows):
    where, model = chips.parse(where), models.find("llada-8b")
    program = program_for(
        DecodeConfig(gen_length=256, cache="dual"),
        model,
        length=768,
        dtype="bfloat16",
        eot_token_id=126_348,
        refresh_group=4,
    )
    made = compiled.compile_for(where, mesh, program, rows)
    assert made.total < where.chip.hbm
    # Tokens and cache live once: what goes in comes out in the same place.
    assert made.donated > 0.99 * made.state
    assert ("s32", (rows, 768)) in made.reused
    keys = ("bf16", (32, rows, 32 // mesh.tensor, 768, 128))
    assert made.reused.count(keys) == 2
    # The program knows one replica's devices, so nothing in it can cross `data`.
    assert made.partitions == mesh.replica
    assert made.collectives
    for collective in made.collectives:
        assert collective.axes({"fsdp": 1, "tensor": mesh.tensor}) == ("tensor",), collective
    # Layers scatter sums and gather activations; the head compares, and no logits are exchanged.
    # (Of a line of 16, half is no ring: libtpu sums there whole, and each device keeps a slice.)
    ring = where.chips == 8
    kinds = {"all-reduce", "all-gather"} | ({"reduce-scatter"} if ring else set())
    assert {c.kind for c in made.collectives} == kinds
    for collective in made.collectives:
        if ring and collective.kind == "all-reduce":
            assert collective.bytes <= 4 * rows * 768  # a number a position, not its width
    for collective in made.collectives:
        for _, shape in collective.shapes:
            assert model.vocab_size not in shape and model.vocab_size // mesh.tensor not in shape
    # The full pass of the 4 rows that refresh stays inside the loop of no or one turn, where a
    # pass without a refresh does not pay for it: the decode loop, that one, the layers.
    width = model.mlp_hidden_size // mesh.tensor
    assert _depths(made.text, {(4 * 768, width), (4, 768, width)}) == {3}


def _depths(text, shapes):
    """How deep in loops arrays of these shapes are made."""
    module = hlo.parse(text)
    return {
        module.depths[computation.name]
        for computation, instruction in module.everything()
        if any(array.dims in shapes for array in instruction.arrays)
    }


def test_the_default_batch_starts_with_fewer_rows(capsys):
    """libtpu says what does not fit before anything runs, and the engine halves its rows."""
    where, mesh = chips.parse("v6e:1x1"), MeshShape()
    [place] = placements(mesh, compiled.devices(where))
    program = shapes.program(refresh_group=1)
    replica = Replica(compiled.abstract_params(program, place), place)
    engine = Executables([replica], hardware.TPU.slots, fixed=False)
    with announced():
        made = engine.get(program, [0], int(where.chip.hbm))
    # 16 GB of weights and 0.4 GB a row of keys and values: no room for twice the rows.
    assert hardware.TPU.slots == 64 and made.slots == 32
    said = capsys.readouterr().err
    assert "32 rows at once, not 64: 64 do not fit in memory, says the compiler" in said
    assert together([made.footprint]) < where.chip.hbm
    # The cache lies in memory as the loop wants it: a chunk lays nothing out anew.
    account = audit.audit(made.executables["run"].as_text(), need.passes(mesh, program, 32))
    assert account.outside.moved < 1e6


@pytest.mark.parametrize("where", ["v5e:4x4", "v6e:16x16", "v5p:2x2x4", "7x:2x2x2", "v5e:1x1"])
def test_devices_lie_as_the_roofline_says(where):
    where = chips.parse(where)
    devices = compiled.devices(where)
    assert len(devices) == where.devices
    for count in (1, 2, 4, 8, 16):
        if count <= where.devices:
            places = zip(*(d.coords for d in devices[:count]), strict=True)
            assert where.spanned(count) == sum(len(set(axis)) > 1 for axis in places)
