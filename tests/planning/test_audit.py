"""What an audit counts in the stored TPU programs of LLaDA-8B, and how it knows their passes."""

import pytest

from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.planning import audit, models, need
from leapjax.sharding import MeshShape
from tests.planning import stored

MESHES = {
    "v6e-data8-dual": MeshShape(data=8),
    "v6e-data8-none": MeshShape(data=8),
    "v6e-tensor8-dual": MeshShape(tensor=8),
    "v5e-tensor8-dual": MeshShape(tensor=8),
    "v5e-data4-tensor2-dual": MeshShape(data=4, tensor=2),
}


def expected(name):
    mesh, cache = MESHES[name], name.split("-")[-1]
    slots = 64 // mesh.data
    program = program_for(
        DecodeConfig(gen_length=256, block_length=32, cache=cache),
        models.find("llada-8b"),
        length=768,
        dtype="bfloat16",
        eot_token_id=None,
        refresh_group=max(4, slots // 8),
    )
    return need.passes(mesh, program, slots)


@pytest.fixture(scope="module")
def audited():
    return {name: audit.audit(stored.load(name), expected(name)) for name in MESHES}


# GB of an iteration without a refresh, of a refresh, of what is outside the loop. They were counted
# by another program before this one, which left out asynchronous slices (0 to 1.7 GB of a refresh)
# and took an all-reduce's operand for read from HBM where it lies on the chip: 3.1 GB of
# v5e-tensor8, where it had 14.3.
@pytest.mark.parametrize(
    ("name", "step", "refresh", "outside"),
    [
        ("v6e-data8-dual", 24.2, 66, 6.4),
        ("v6e-data8-none", 121.2, None, 6.4),
        ("v6e-tensor8-dual", 25.2, 23, 13.7),
        ("v5e-tensor8-dual", 18.9, 14.3 - 3.1 + 1.6, 13.7),
        ("v5e-data4-tensor2-dual", 11.4, 26, 3.2),
    ],
)
def test_bytes_of_known_programs(audited, name, step, refresh, outside):
    found = audited[name]
    assert found.step[0] / 1e9 == pytest.approx(step, rel=0.05)
    assert found.outside.moved / 1e9 == pytest.approx(outside, rel=0.05)
    passes = [need.FULL] if refresh is None else [need.WINDOW, need.REFRESH]
    assert list(found.passes) == [*passes, need.BESIDES]
    if refresh is not None:
        assert found.passes[need.REFRESH].moved / 1e9 == pytest.approx(refresh, rel=0.05)


@pytest.mark.parametrize(
    ("name", "step", "refresh"),
    [
        # Weights of the layers 13.96 GB, of the head 1.04; keys and values of 8 rows 3.22.
        ("v6e-data8-dual", 13.96 + 1.04 + 3.22 + 0.14, 13.96 + 3.22 / 2 + 1.61 + 0.03),
        ("v6e-data8-none", 18.3, None),
        ("v5e-tensor8-dual", 15.0 / 8 + 3.22 + 0.14, 13.96 / 8 + 0.40 + 0.41),
    ],
)
def test_need(audited, name, step, refresh):
    found = audited[name]
    assert found.step[1] / 1e9 == pytest.approx(step, rel=0.005)
    if refresh:
        assert found.passes[need.REFRESH].need.total / 1e9 == pytest.approx(refresh, rel=0.005)
