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


def test_pallas_calls():
    """Blocks are read from what the compiler writes today, not only from what is stored."""
    where = SingleDeviceSharding(compiled.devices(chips.parse("v5e:1x1"))[0])
    shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where) for s in kernels.SHAPES]
    check_kernels(jax.jit(kernels.calls).lower(*shapes).compile().as_text())
