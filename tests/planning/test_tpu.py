"""What the real TPU compiler makes of the decode, for slices that are not attached."""

import importlib.util

import pytest

from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.planning import chips, compiled, models
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
        ("v6e:2x4", MeshShape(data=2, tensor=4), 32),
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
    # A replica's program knows its own devices only, so nothing can cross `data`; inside,
    # layers sum and the head compares, and nothing like logits is ever gathered.
    assert {c.kind for c in made.collectives} == {"all-reduce"}
    largest = max(rows * 32 * model.d_model, 4 * 768 * model.d_model) * 2
    for collective in made.collectives:
        for _, shape in collective.shapes:
            assert model.vocab_size not in shape and model.vocab_size // mesh.tensor not in shape
        assert collective.bytes <= 2 * largest, collective
    logits = 4 * rows * 32 * model.vocab_size
    assert all(c.bytes < logits / mesh.tensor for c in made.collectives)
