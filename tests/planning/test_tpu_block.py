"""Block-causal models with their exact cache, by the real TPU compiler, true shapes.

Prompt 512, canvas 256. A window pass, a turn that stores, and a piece of a prefill move what they
must; nothing of the size of the cache or of a layer's weights is copied.
"""

import importlib.util
import json

import pytest

from leapjax.cli import plan as command
from leapjax.planning import audit, need

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]


@pytest.mark.parametrize(
    ("model", "block", "where", "mesh", "rows", "most", "prefill"),
    [
        ("sdar-8b", 4, "v6e:1x1", "data=1", 32, 1.05, 1.05),  # all passes two blocks wide
        ("sdar-8b", 4, "v6e:2x2", "tensor=4", 32, 1.05, 1.05),
        ("sdar-8b", 4, "v5e:2x4", "tensor=8", 64, 1.05, 1.05),  # turns
        ("sdar-8b", 32, "v6e:1x1", "data=1", 32, 1.1, 1.05),  # turns
        ("fast-dllm-v2-7b", 32, "v6e:1x1", "data=1", 32, 1.05, 1.05),
        ("fast-dllm-v2-7b", 32, "v5e:2x2", "tensor=4", 32, 1.15, 1.15),
        # On v5p scores and activations go through memory, however few.
        ("sdar-8b", 4, "v5p:2x2x1", "data=4", 32, 1.15, 1.35),
        ("fast-dllm-v2-7b", 32, "v5p:2x2x1", "data=4", 32, 1.4, 1.35),
    ],
)
def test_a_pass_moves_what_it_must(model, block, where, mesh, rows, most, prefill, tmp_path):
    out = tmp_path / "plan.json"
    argv = ["--model", model, "--block-length", str(block), "--topology", where, "--mesh", mesh]
    argv += ["--batch", str(rows), "--quantize", "none", "--audit", "--reuse", "off"]
    assert command.main([*argv, "--json", str(out)]) == 0
    (plan,) = json.loads(out.read_text())["plans"]
    found, counted = plan["audit"]["passes"], plan["counted"]
    layer = counted["weights"] / (28 if model.startswith("fast") else 36)
    for name in (need.WINDOW, need.STORE, need.PREFILL):
        if one := found.get(name):
            assert 0.9 < one["ratio"] < (prefill if name == need.PREFILL else most), name
            assert all(c["written"] / c["times"] < layer for c in one["copies"]), name
    assert (need.STORE in found) is (model == "sdar-8b" and rows > 2 * plan["refresh_group"])
    assert found[need.WINDOW]["turns"] == 1
    # A finished block is written where it belongs, row by row.
    written = counted["cache"] / plan["rows_a_replica"] * block / 768
    assert need.STORE in found or found[need.WRITE]["moved"] < 4 * written
    # A prefill takes its row out of the cache and puts it back, and copies no other.
    row = counted["cache"] / plan["rows_a_replica"]
    assert found[audit.AROUND]["moved"] < 4.5 * row
    assert plan["audit"]["outside"]["moved"] < 0.01 * counted["weights"]
    assert counted["temporaries"] < 1.5e9
    assert counted["donated"] > 0.99 * counted["cache"]
