"""The audit of what the real TPU compiler makes, for slices that are not attached."""

import importlib.util
import json

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from leapjax.cli import plan as command
from leapjax.planning import chips, compiled, need
from tests.planning import kernels
from tests.planning.test_traffic import check_kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]


_KINDS = ("all-gather", "reduce-scatter", "collective-permute")


def test_the_whole_command(tmp_path, capsys):
    """LLaDA-8B as it runs on each chip of v6e data=8: compiled, audited, written down."""
    out = tmp_path / "plan.json"
    argv = ["--topology", "v6e:1x1", "--mesh", "data=1", "--batch", "8", "--quantize", "none"]
    assert command.main([*argv, "--audit", "--reuse", "off", "--json", str(out)]) == 0
    text = capsys.readouterr().out.splitlines()
    (plan,) = json.loads(out.read_text())["plans"]
    found = plan["audit"]
    assert list(found["passes"]) == [need.WINDOW, need.REFRESH, need.BESIDES]
    for name, one in found["passes"].items():
        assert one["moved"] == plan["counted"]["moved"][name] == one["read"] + one["written"]
        assert any(line.startswith(name) for line in text)
    # Weights and cache are read once by whoever reads them; the rest stays on the chip.
    step = found["step"]
    assert step["need"] == pytest.approx(18.35e9, rel=0.01)
    assert 0.9 < step["ratio"] < 1.1
    refresh = found["passes"][need.REFRESH]
    assert refresh["turns"] is None and refresh["ratio"] > 0.9
    # All that is counted is in the text, and what it has to read has a name.
    assert step["moved"] == sum(found["passes"][n]["moved"] for n in (need.WINDOW, need.BESIDES))
    named = {
        label for one in found["passes"].values() for o in one["wasteful"] for label in o["of"]
    }
    assert named and all(label.startswith(("params[", "state.")) for label in named)


@pytest.mark.parametrize(
    ("where", "cache", "rows", "most"),
    [("v5e:2x4", "none", 8, 2.5), ("v5e:2x4", "dual", 64, 1.1), ("v6e:2x4", "dual", 64, 1.15)],
)
def test_over_tensor(where, cache, rows, most, tmp_path):
    """LLaDA-8B with a residual stream split over 8 chips."""
    out = tmp_path / "plan.json"
    argv = ["--topology", where, "--mesh", "tensor=8", "--batch", str(rows), "--cache", cache]
    argv += ["--quantize", "none", "--audit", "--reuse", "off", "--json", str(out)]
    assert command.main(argv) == 0
    (plan,) = json.loads(out.read_text())["plans"]
    name = need.FULL if cache == "none" else need.WINDOW
    assert 0.9 < plan["audit"]["passes"][name]["ratio"] < most
    assert plan["audit"]["step"]["ratio"] < most
    layer = [c for c in plan["counted"]["collectives"] if c["part"] == name and c["times"] > 30]
    # A layer sums no more than a number a position; it scatters two sums and gathers twice.
    positions = rows * (768 if cache == "none" else 32)
    assert all(c["bytes"] <= 4 * positions for c in layer if c["kind"] == "all-reduce")
    times = {kind: sum(c["times"] for c in layer if c["kind"] == kind) for kind in _KINDS}
    assert times["all-gather"] in (62, 63, 64)  # the last layer of a full pass is beside the loop
    if cache == "dual":
        assert times["reduce-scatter"] == 65 and not times["collective-permute"]
    else:  # the sum after the MLP is exchanged beside its product
        assert times["reduce-scatter"] in (31, 32) and times["collective-permute"] > 31 * 8
        assert all(c["asynchronous"] for c in layer if c["kind"] == "collective-permute")


def test_pallas_calls():
    """Blocks are read from what the compiler writes today, not only from what is stored."""
    where = SingleDeviceSharding(compiled.devices(chips.parse("v5e:1x1"))[0])
    shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where) for s in kernels.SHAPES]
    check_kernels(jax.jit(kernels.calls).lower(*shapes).compile().as_text())
