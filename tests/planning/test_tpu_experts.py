"""Mixtures of experts with their exact cache, by the real TPU compiler, true shapes.

Prompt 512, canvas 256. The layers' experts are read in place, each that a pass touches once.
"""

import importlib.util
import json

import pytest

from leapjax.cli import plan as command
from leapjax.planning import need

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]


@pytest.mark.parametrize(
    ("model", "where", "mesh", "rows", "quantize", "most"),
    [
        ("llada2-mini", "v6e:2x2", "expert=4", 8, "none", 1.05),
        ("llada2-mini", "v5e:2x2", "expert=2,tensor=2", 8, "int8", 1.2),
        # On v5p a pair's activations go through memory; more rows move more of them.
        ("llada2-flash", "v5p:2x2x1", "tensor=4", 4, "none", 1.2),
        ("sdar-30b-a3b", "v5e:2x4", "expert=8", 32, "none", 1.05),
        # 16 tokens a pass touch 82 of 128 experts.
        ("sdar-30b-a3b", "v6e:2x2", "data=2,expert=2", 4, "none", 1.05),
    ],
)
def test_a_pass_moves_what_it_must(model, where, mesh, rows, quantize, most, tmp_path):
    out = tmp_path / "plan.json"
    argv = ["--model", model, "--topology", where, "--mesh", mesh, "--batch", str(rows)]
    argv += ["--quantize", quantize, "--audit", "--reuse", "off", "--json", str(out)]
    assert command.main(argv) == 0
    (plan,) = json.loads(out.read_text())["plans"]
    found, counted, said = plan["audit"]["passes"], plan["counted"], plan["estimated"]
    routed = sum(each["bytes"] for each in said["experts"].values())
    assert routed > 0 and said["experts"].keys() == {n for n in found if n in _LAYERS}
    for name in said["experts"]:
        assert 0.9 < found[name]["ratio"] < most, name
        # No stack of experts is copied, and no loop over them depends on data.
        layer = counted["weights"] / 100
        assert all(c["written"] / c["times"] < layer for c in found[name]["copies"]), name
    assert found[need.WINDOW]["turns"] == 1
    assert plan["audit"]["outside"]["moved"] < 0.02 * counted["weights"]
    # A layer of experts is summed over `expert` once, each device its part of the width.
    sums = [c for c in counted["collectives"] if "expert" in c["over"] and c["part"] == need.WINDOW]
    layers = {"llada2-mini": 19, "llada2-flash": 31, "sdar-30b-a3b": 48}[model]
    if "expert" in mesh:
        tokens = said["experts"][need.WINDOW]["tokens"]
        width = 2048 // (2 if "tensor" in mesh else 1)
        assert [(c["kind"], c["times"], c["bytes"]) for c in sums if c["times"] > 1] == [
            ("all-reduce", layers, 2 * tokens * width)
        ]


_LAYERS = (need.WINDOW, need.STORE, need.PREFILL)
