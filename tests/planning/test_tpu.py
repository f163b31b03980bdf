"""What the real TPU compiler makes of the decode, for slices that are not attached."""

import importlib.util

import pytest

from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.errors import UserError
from leapjax.failures import out_of_memory
from leapjax.planning import chips, compiled, hlo, models
from leapjax.sharding import MeshShape

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]


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
    keys = ("bf16", (32, rows, 768, 32 // mesh.tensor, 128))
    assert made.reused.count(keys) == 2
    # The program knows one replica's devices, so nothing in it can cross `data`.
    assert made.partitions == mesh.replica
    assert made.collectives
    for collective in made.collectives:
        assert collective.axes({"fsdp": 1, "tensor": mesh.tensor}) == ("tensor",), collective
    # Layers sum and the head compares; nothing is gathered, least of all logits.
    assert {c.kind for c in made.collectives} == {"all-reduce"}
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


def test_the_compiler_refuses_what_does_not_fit():
    """What the engine relies on when it halves its rows: libtpu says so before anything runs."""
    where, model = chips.parse("v6e:1x1"), models.find("llada-8b")
    program = program_for(
        DecodeConfig(gen_length=256, cache="dual"),
        model,
        length=768,
        dtype="bfloat16",
        eot_token_id=126_348,
        refresh_group=4,
    )
    with pytest.raises(UserError, match="does not compile") as refused:
        compiled.compile_for(where, MeshShape(), program, 64)
    assert refused.value.__cause__ is not None and out_of_memory(refused.value.__cause__)
    made = compiled.compile_for(where, MeshShape(), program, 32)
    # 16 GB of weights and 0.4 GB a row of keys and values: no room for twice the rows.
    assert made.total < where.chip.hbm < made.total + made.state


@pytest.mark.parametrize("where", ["v5e:4x4", "v6e:16x16", "v5p:2x2x4", "7x:2x2x2", "v5e:1x1"])
def test_devices_lie_as_the_roofline_says(where):
    where = chips.parse(where)
    devices = compiled.devices(where)
    assert len(devices) == where.devices
    for count in (1, 2, 4, 8, 16):
        if count <= where.devices:
            places = zip(*(d.coords for d in devices[:count]), strict=True)
            assert where.spanned(count) == sum(len(set(axis)) > 1 for axis in places)
