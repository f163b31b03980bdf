"""Bytes that compiled TPU programs move, over what they have to, for slices that are not attached.

Prompt 512, canvas 256, blocks of 32, 64 rows over 8 chips where nothing else is said.
"""

import importlib.util

import pytest

from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.planning import audit, chips, compiled, models, need
from leapjax.sharding import parse
from leapjax.testing import tiny_config

pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]


def compile_and_audit(
    where, mesh, rows, model, cache="dual", quantize=None, length=768, gen_length=256
):
    """The compiled program, its audit."""
    config = DecodeConfig(gen_length=gen_length, block_length=32, cache=cache)
    made = program_for(
        config, model, length=length, dtype="bfloat16", eot_token_id=None, refresh_group=1
    )
    shape = parse(mesh)
    out = compiled.compile_for(chips.parse(where), shape, made, rows, quantize)
    return out, audit.audit(out.text, need.passes(shape, made, rows, quantize))


def check_loops(text):
    """The decode, turns of refreshes, layers and turns of attention of each pass; no other."""
    assert text.count(" while(") <= 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "mesh", "rows", "model", "quantize", "most"),
    [
        ("v6e:1x1", "data=1", 8, "llada-8b", None, 1.05),  # one replica of data=8
        ("v5e:2x2", "tensor=2", 16, "llada-8b", None, 1.06),  # of data=4,tensor=2
        ("v6e:1x1", "data=1", 8, "dream-7b", None, 1.05),
        ("v6e:1x1", "data=1", 8, "llada-8b", "int8", 1.05),
        ("v5e:1x1", "data=1", 8, "llada-8b", "int8", 1.05),
    ],
)
def test_a_window_pass_moves_what_it_must(where, mesh, rows, model, quantize, most):
    """`tensor=8` is in test_tpu_audit.py."""
    made, found = compile_and_audit(where, mesh, rows, models.PRESETS[model], quantize=quantize)
    moved, needed = found.step
    assert 0.9 * needed < moved < most * needed
    assert found.passes[need.WINDOW].moved < most * found.passes[need.WINDOW].need.total
    refresh = found.passes[need.REFRESH]
    assert refresh.turns is None and refresh.moved < 1.5 * refresh.need.total
    # Nothing of the size of a layer's weights, or of the cache, is copied.
    layer = made.weights / models.PRESETS[model].n_layers
    assert found.outside.moved < 0.01 * made.weights
    assert max((c.written / c.times for c in refresh.copies), default=0) < layer / 10
    assert made.temporaries < 0.5e9
    check_loops(made.text)


@pytest.mark.slow
def test_full_passes_keep_scores_on_the_chip():
    made, found = compile_and_audit("v6e:1x1", "data=1", 8, models.PRESETS["llada-8b"], "none")
    full = found.passes[need.FULL]
    assert full.moved < 3.3 * full.need.total and found.step[0] < 3.3 * found.step[1]
    assert found.outside.moved < 0.01 * made.weights and made.temporaries < 0.5e9
    check_loops(made.text)


@pytest.mark.parametrize("mesh", ["data=1", "tensor=2"])
def test_a_small_model_of_the_same_layout(mesh):
    """Heads as wide as a tile; seconds to compile."""
    model = tiny_config(n_layers=3, d_model=512, n_heads=4, n_kv_heads=4, head_dim=128)
    where = "v6e:1x1" if mesh == "data=1" else "v6e:2x2"
    made, found = compile_and_audit(where, mesh, 8, model, length=160, gen_length=128)
    window = found.passes[need.WINDOW]
    # The chip can hold the whole of it, so nothing moves twice.
    assert window.moved < 1.05 * window.need.total
    assert found.outside.moved < 0.05 * (made.weights + made.state)
    check_loops(made.text)
